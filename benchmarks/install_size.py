"""Measure what the provider's tool adds to a Python: `pip install .` without extras, in an empty environment.

    python benchmarks/install_size.py [--json]

Sizes are those of the files, the compiled ones of the interpreter among them, in MB of 1,000,000 bytes. What a new
environment has already (pip, its links) is not counted.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parents[1]
LARGEST = 12


def sizes(site: Path) -> Counter[str]:
    """Return the bytes below each entry of a `site-packages` directory."""
    found: Counter[str] = Counter()
    for path in site.rglob("*"):
        if path.is_file() and not path.is_symlink():
            found[path.relative_to(site).parts[0]] += path.stat().st_size
    return found


def measure(folder: Path) -> Counter[str]:
    """Install into an environment in `folder`; return the bytes that came, by package."""
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    (site,) = folder.glob("lib/python*/site-packages")
    before = sizes(site)
    pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet"]
    subprocess.run([*pip, str(ROOT)], check=True, stdout=sys.stderr)
    after = sizes(site)
    for name in before:  # pip compiles itself while it runs
        del after[name]
    return after


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = measure(Path(folder))
    rows = {name: round(size / 1e6, 1) for name, size in found.most_common(LARGEST)}
    total = round(sum(found.values()) / 1e6, 1)
    if arguments.json:
        print(json.dumps({"mb": total, "largest": rows}))
        return
    for name, size in rows.items():
        print(f"{name:24}{size:8.1f} MB")
    print(f"{'all':24}{total:8.1f} MB")


if __name__ == "__main__":
    main()
