"""Fuzz the job's HTTP server from its OpenAPI document, in every phase of a job: schemathesis, and mutated bytes.

An answer that the document does not know, a word that is no public code, a malformed request that is not refused,
a good one that is refused as malformed, an error inside the server: each is a finding, printed with its request;
the exit code is 1 then. The same seed gives the same requests.

    python scripts/fuzz_http.py                              # 100,000 requests by schemathesis over all stages
    python scripts/fuzz_http.py --requests 2000 --tls        # over TLS and loopback instead of socket pairs
    python scripts/fuzz_http.py --stage uploading --seed 7
    python scripts/fuzz_http.py --save progress.json         # the same call again goes on after what is done

A fifth as many requests are mutated byte by byte. They are counted apart, and judged by the answer's words only.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import math
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from random import Random
from typing import Any, Final

ROOT: Final = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "scripts")]

from http_cases import Cases, aim, mutated, prepared, wire  # noqa: E402 -- found only now
from http_stages import STAGES, TOKEN, Server, Stage, serving  # noqa: E402
from http_verdict import Answer, Judge, MalformedAnswerError, read_answer  # noqa: E402
from requests.exceptions import RequestException  # noqa: E402
from schemathesis import Case  # noqa: E402

from trainer.front.__main__ import quiet_libraries  # noqa: E402
from trainer.logs import private  # noqa: E402

_RENEW_EVERY: Final = 40
_MUTATED_SHARE: Final = 0.2
_KEPT: Final = 64
_ANSWER_SECONDS: Final = 10.0
_MUTATED_SECONDS: Final = 0.05
_PROGRESS_SECONDS: Final = 10.0


@dataclass
class Outcome:
    """What one stage came to; `requests` are schemathesis's, `mutated` are beside them."""

    stage: str
    requests: int = 0
    mutated: int = 0
    unsent: int = 0
    seconds: float = 0.0
    statuses: dict[str, int] = field(default_factory=dict)
    findings: dict[str, str] = field(default_factory=dict)

    def count(self, status: str) -> None:
        """One more answer with this status."""
        self.statuses[status] = self.statuses.get(status, 0) + 1


class Session:
    """Fires requests at one server and keeps what is wrong with the answers."""

    def __init__(self, server: Server, judge: Judge, outcome: Outcome, rng: Random) -> None:
        self._server, self._judge, self._rng = server, judge, rng
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        self._recent: list[bytes] = []
        self.outcome = outcome

    async def fire(self, case: Case[Any]) -> None:
        """One case of schemathesis, and now and then a mutation of its bytes."""
        try:
            request = prepared(case)
            aim(request, self._server, self._rng)
            data = wire(request)
        except (
            RequestException,
            UnicodeError,
        ):
            # A header that no client can send: the wire has no room for it.
            self.outcome.unsent += 1
            return
        try:
            answer = await asyncio.wait_for(self._ask(data, case.method), _ANSWER_SECONDS)
        except (MalformedAnswerError, TimeoutError) as error:
            self._note([f"no answer: {type(error).__name__}: {error}"], case.operation.label, data)
            await self.close()
            return
        self.outcome.requests += 1
        self.outcome.count(str(answer.status))
        token = f"Bearer {TOKEN}" in str(request.headers.get("Authorization", ""))
        wrong = self._judge.by_document(case, request, answer)
        wrong += self._judge.by_words(case.method, str(request.path_url), answer, token=token)
        self._note(wrong, case.operation.label, data)
        await self._mutate(data)

    async def _ask(self, data: bytes, method: str) -> Answer:
        # A connection that was kept may be gone meanwhile: the second one is new.
        for _ in range(2):
            fresh = self._streams is None
            reader, writer = self._streams = self._streams or await self._server.connect()
            writer.write(data)
            answer = await read_answer(reader, method)
            if answer.headers.get("connection") == ["close"] or answer.status == 0:
                await self.close()
            if answer.status or fresh:
                break
        if not answer.status:
            raise MalformedAnswerError("closed without an answer")
        return answer

    async def _mutate(self, data: bytes) -> None:
        self._recent = [*self._recent[-_KEPT:], data]
        if self._rng.random() >= _MUTATED_SHARE:
            return
        changed = mutated(data, self._recent, self._rng)
        self.outcome.mutated += 1
        reader, writer = await self._server.connect()
        method, target = (
            [part.decode("latin1") for part in changed[:4096].split(b" ")[:2]] + ["", ""]
        )[:2]
        try:
            writer.write(changed)
            answer = await asyncio.wait_for(read_answer(reader, method), _MUTATED_SECONDS)
        except MalformedAnswerError as error:
            self._note([f"mutated: {error}"], "mutated", changed)
        except (TimeoutError, ConnectionError):
            self.outcome.count("mutated: waits for more")
        else:
            self.outcome.count(f"mutated: {answer.status or 'closed'}")
            if answer.status:
                token = TOKEN.encode() in changed
                self._note(
                    self._judge.by_words(method, target, answer, token=token), "mutated", changed
                )
        finally:
            writer.close()

    def _note(self, wrong: list[str], label: str, data: bytes) -> None:
        for words in wrong:
            key = f"{label}: {words}"[:300]
            self.outcome.findings.setdefault(key, data[:2000].decode("latin1"))

    async def close(self) -> None:
        """Give the connection up."""
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None


@contextmanager
def listening_for_bugs(found: list[str]) -> Iterator[None]:
    """Collect what the server says to its private log, and what its loop had to catch."""

    class _Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            found.append(f"private log: {record.getMessage()}")

    handler = _Keep()
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(
        lambda _, context: found.append(f"event loop: {context.get('message')}")
    )
    private.addHandler(handler)
    silent, private.propagate = private.propagate, False
    try:
        yield
    finally:
        private.removeHandler(handler)
        private.propagate = silent
        loop.set_exception_handler(None)


async def fuzz_stage(
    stage: Stage,
    requests: int,
    cases: Cases,
    seed: int,
    *,
    tls: bool,
    tell: Callable[[Outcome], None],
    until: float = math.inf,
) -> Outcome:
    """Fire `requests` cases at a server in this stage, but none after `until` (monotonic seconds)."""
    outcome, began = Outcome(stage.name), time.monotonic()
    bugs: list[str] = []
    with tempfile.TemporaryDirectory() as spool, listening_for_bugs(bugs):
        async with serving(stage, Path(spool), tls=tls) as server:
            judge = Judge(server.document, (spool,))
            session = Session(server, judge, outcome, Random(f"{seed}/{stage.name}"))
            for number, case in enumerate(cases):
                if outcome.requests >= requests or time.monotonic() >= until:
                    break
                if number % _RENEW_EVERY == _RENEW_EVERY - 1:
                    await server.renew()
                await session.fire(case)
                outcome.seconds = time.monotonic() - began
                tell(outcome)
            await session.close()
    outcome.findings |= dict.fromkeys(bugs, "")
    return outcome


async def document() -> dict[str, Any]:
    """The OpenAPI document as a server gives it."""
    with tempfile.TemporaryDirectory() as spool:
        async with serving(STAGES[0], Path(spool)) as server:
            return dict(server.document)


class Run:
    """Stages one after the other; what is done already is in `save`."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options
        self._told = 0.0
        self.outcomes: list[Outcome] = []
        if options.save is not None and options.save.exists():
            rows = json.loads(options.save.read_text())
            self.outcomes = [Outcome(**row) for row in rows]

    def fuzz(self) -> list[Outcome]:
        """Fire at each stage that is not done yet."""
        stages = [
            stage
            for stage in STAGES
            if not self._options.stage or stage.name in self._options.stage
        ]
        done = {outcome.stage for outcome in self.outcomes}
        each = -(-self._options.requests // len(stages))
        cases = Cases(asyncio.run(document()), self._options.seed)
        until = time.monotonic() + self._options.seconds
        for stage in stages:
            if stage.name in done:
                continue
            if time.monotonic() >= until:
                break
            options = self._options
            work = fuzz_stage(
                stage, each, cases, options.seed, tls=options.tls, tell=self._tell, until=until
            )
            self.outcomes.append(asyncio.run(work))
            # A stage that was cut short is not done.
            if self._options.save is not None and time.monotonic() < until:
                self._options.save.write_text(
                    json.dumps([asdict(outcome) for outcome in self.outcomes])
                )
        return self.outcomes

    def _tell(self, outcome: Outcome) -> None:
        now = time.monotonic()
        if not self._options.quiet and now - self._told > _PROGRESS_SECONDS:
            self._told = now
            rate = outcome.requests / outcome.seconds
            sys.stderr.write(f"{outcome.stage:20} {outcome.requests:>7} requests, {rate:5.0f}/s\n")


def summary(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """The figures of a run."""
    statuses: Counter[str] = Counter()
    for each in outcomes:
        statuses.update(each.statuses)
    total, seconds = sum(each.requests for each in outcomes), sum(each.seconds for each in outcomes)
    return {
        "requests": total,
        "mutated": sum(each.mutated for each in outcomes),
        "unsent": sum(each.unsent for each in outcomes),
        "seconds": round(seconds, 1),
        "requests_per_second": round(total / seconds) if seconds else 0,
        "statuses": dict(sorted(statuses.items())),
        "findings": sum(len(each.findings) for each in outcomes),
        "stages": [asdict(each) for each in outcomes],
    }


def _print(outcomes: Sequence[Outcome]) -> None:
    print(f"{'stage':20} {'requests':>8} {'mutated':>8} {'seconds':>8} {'findings':>8}")
    for each in outcomes:
        row = f"{each.requests:>8} {each.mutated:>8} {each.seconds:>8.1f} {len(each.findings):>8}"
        print(f"{each.stage:20} {row}")
    whole = summary(outcomes)
    print(
        f"{whole['requests']} requests by schemathesis, {whole['mutated']} mutated, in {whole['seconds']} s"
    )
    print(" ".join(f"{status}={count}" for status, count in whole["statuses"].items()))
    for each in outcomes:
        for words, request in each.findings.items():
            print(f"FINDING in {each.stage}: {words}\n{request}\n")


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument(
        "--requests", type=int, default=100_000, help="by schemathesis, over all stages together"
    )
    parser.add_argument("--seconds", type=float, default=math.inf, help="stop after this long")
    parser.add_argument(
        "--stage", action="append", choices=[stage.name for stage in STAGES], help="repeatable"
    )
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--tls", action="store_true", help="over TLS and loopback")
    parser.add_argument("--save", type=Path, help="keep finished stages here, and go on after them")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--quiet", action="store_true", help="no progress")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str]) -> int:
    """Fuzz, print; 1 if there is a finding."""
    options = parse(arguments)
    outcomes = Run(options).fuzz()
    if options.json:
        print(json.dumps(summary(outcomes), indent=2))
    else:
        _print(outcomes)
    return int(any(each.findings for each in outcomes))


if __name__ == "__main__":
    quiet_libraries()
    sys.exit(main(sys.argv[1:]))
