"""The style sheet of the attestation page: light and dark, screen and print, no external fonts or images."""

from __future__ import annotations

from typing import Final

STYLE: Final = """
:root {
  color-scheme: light dark;
  --page: #f6f7f9; --card: #fff; --ink: #1b2330; --soft: #5b6675; --line: #dfe3e9; --code: #eef1f5;
  --affirmed: #12703c; --affirmed-back: #e3f4ea; --contraindicated: #b3201f; --contraindicated-back: #fdeaea;
  --not-demanded: #626d7c; --not-demanded-back: #eceff3; --not-reached: #8a5a00; --not-reached-back: #fdf1da;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #12161c; --card: #1a2029; --ink: #e4e9f0; --soft: #9aa6b5; --line: #2c3541; --code: #232b36;
    --affirmed: #63d396; --affirmed-back: #17362a; --contraindicated: #ff8b86; --contraindicated-back: #42201f;
    --not-demanded: #9aa6b5; --not-demanded-back: #262e39; --not-reached: #f0b95a; --not-reached-back: #3a2d14;
  }
}
.development { --affirmed: var(--not-reached); --affirmed-back: var(--not-reached-back); }
.banner { margin: 0 0 1.25rem; padding: 1rem 1.25rem; border-radius: 12px; font-weight: 700;
  color: var(--contraindicated); background: var(--contraindicated-back); border: 2px solid; }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); font: 15px/1.5 system-ui, "Segoe UI", sans-serif; }
main { max-width: 66rem; margin: 0 auto; padding: 2rem 1.25rem 3rem; }
h1 { margin: 0; font-size: 2.1rem; line-height: 1.15; letter-spacing: -.01em; }
h2 { margin: 0; font-size: 1.1rem; }
code, .value { font: 13px/1.5 ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace; }
code, .value, td { overflow-wrap: anywhere; }
section { margin-top: 1.25rem; padding: 1.1rem 1.25rem; background: var(--card); border: 1px solid var(--line);
  border-radius: 12px; }
.verdict { display: flex; flex-wrap: wrap; gap: .5rem 1.25rem; align-items: center; padding: 1.4rem 1.5rem;
  border-radius: 14px; border: 1px solid; }
.verdict p { margin: .3rem 0 0; color: var(--ink); }
.verdict > div { flex: 1 1 24rem; }
.mark { width: 4.2rem; height: 4.2rem; border-radius: 50%; border: 3px solid; display: grid; place-items: center;
  font-size: 2.3rem; line-height: 1; }
.counts { list-style: none; display: flex; flex-wrap: wrap; gap: .5rem; margin: 0; padding: 0; flex: 1 0 100%; }
.badge { display: inline-block; padding: .1rem .6rem; border-radius: 99px; font-size: .84rem; font-weight: 600;
  white-space: nowrap; }
.pass, .affirmed, .affirming { color: var(--affirmed); background: var(--affirmed-back); }
.fail, .contraindicated { color: var(--contraindicated); background: var(--contraindicated-back); }
.not-demanded, .none { color: var(--not-demanded); background: var(--not-demanded-back); }
.not-reached, .warning { color: var(--not-reached); background: var(--not-reached-back); }
.columns { display: grid; grid-template-columns: repeat(auto-fit, minmax(22rem, 1fr)); gap: 1.25rem;
  margin-top: 1.25rem; }
.columns section { margin: 0; min-width: 0; }
dl { margin: .7rem 0 0; display: grid; grid-template-columns: 7.2rem 1fr; gap: .4rem .9rem; }
dt { color: var(--soft); }
dd { margin: 0; min-width: 0; }
.failure { margin-top: .9rem; padding: .9rem 1rem; border-left: 4px solid var(--contraindicated);
  background: var(--contraindicated-back); border-radius: 0 8px 8px 0; }
.failure h3 { margin: 0; font-size: 1rem; }
.head { display: flex; flex-wrap: wrap; gap: .4rem .7rem; align-items: center; }
.vector { margin: .35rem 0 0; color: var(--soft); font-size: .86rem; }
table { width: 100%; border-collapse: collapse; margin-top: .8rem; table-layout: fixed; }
th { text-align: left; font-weight: 600; color: var(--soft); font-size: .82rem; padding: 0 .6rem .35rem 0; }
td { vertical-align: top; padding: .5rem .6rem .5rem 0; border-top: 1px solid var(--line); }
th:nth-child(1) { width: 9.6rem; } th:nth-child(2) { width: 2.4rem; } th:nth-child(4) { width: 42%; }
td:nth-child(2) { color: var(--soft); font-variant-numeric: tabular-nums; }
td small { display: block; color: var(--soft); font-size: .86rem; }
td .badge { background: none; padding: 0; }
.label { color: var(--soft); font-size: .82rem; }
details summary { cursor: pointer; }
ul.plain { margin: .6rem 0 0; padding-left: 1.2rem; }
ul.plain li { margin-top: .3rem; }
footer { margin-top: 1.25rem; color: var(--soft); font-size: .86rem; }
@media (max-width: 44rem) {
  .columns { grid-template-columns: minmax(0, 1fr); }
  th:nth-child(1) { width: 2rem; } td .badge b { display: none; } th:nth-child(4) { width: 40%; }
  dl { grid-template-columns: 1fr; gap: 0; } dd { margin-bottom: .5rem; }
}
@media print {
  :root { color-scheme: light; --page: #fff; --card: #fff; --ink: #000; --soft: #444; --line: #bbb; --code: #fff;
    --affirmed: #0c5a2f; --affirmed-back: #fff; --contraindicated: #a01212; --contraindicated-back: #fff;
    --not-demanded: #555; --not-demanded-back: #fff; --not-reached: #6f4700; --not-reached-back: #fff; }
  body { font-size: 10pt; }
  main { max-width: none; padding: 0; }
  section { border-radius: 0; padding: .6rem 0; border-width: 1px 0 0; }
  tr, .failure, .verdict { break-inside: avoid; }
  h2 { break-after: avoid; }
}
"""
