"""Bring all evidence of a GPU in one run of a few minutes: tests, speed, memory; as JSON and as a page.

    python scripts/gpu_evidence.py collect wheels                # where there is a package index
    python scripts/gpu_evidence.py measure OUT --wheels wheels   # on the machine with the GPU, without a network

The machine needs Python 3.12, one GPU, and a torch of its own, 2.11 or newer; nothing is installed on it.
`collect` takes the wheels of what is locked and not torch, 64 MiB at most; `measure` unpacks them into a folder.
Each part runs in a process with a limit; what fails or does not fit into --seconds is written down as that, and
the rest goes on. `--device cpu` takes the same way without a GPU. Not yet seen running on a GPU.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
MAX_WHEELS = 64 << 20
PACKAGES = frozenset({
    "accelerate", "annotated-doc", "annotated-types", "anyio", "certifi", "click", "datasets", "dill",
    "filelock", "fsspec", "h11", "hf-xet", "httpcore", "httpx", "huggingface-hub", "idna", "iniconfig",
    "jinja2", "markdown-it-py", "markupsafe", "mdurl", "multiprocess", "opt-einsum", "packaging", "peft",
    "pluggy", "psutil", "pydantic", "pydantic-core", "pygments", "pytest", "pytest-timeout", "pyyaml",
    "regex", "rfc8785", "rich", "safetensors", "shellingham", "tokenizers", "tqdm", "transformers", "trl",
    "typer", "typing-extensions", "typing-inspection", "xxhash",
})  # fmt: skip
"""What the tests and the job's side of the benchmark import; numpy and torch are the machine's."""


@dataclass(frozen=True)
class Part:
    """One part of the evidence.

    Attributes:
        name: its title on the page.
        command: arguments of Python, run in the checkout.
        seconds: its limit.
    """

    name: str
    command: tuple[str, ...]
    seconds: int


def parts(device: str) -> list[Part]:
    """Return the parts in the order of their worth: what is cut off at the end is the least."""

    def step(shape: str, peers: str, seconds: int) -> Part:
        command = (
            "-m",
            "benchmarks.training_gpu",
            "--json",
            "--device",
            device,
            "--shapes",
            shape,
            "--peers",
            peers,
        )
        return Part(f"training step, {shape}: {peers}", command, seconds)

    tests = Part("tests/gpu", ("-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/gpu"), 120)
    if device == "cpu":
        return [tests, step("tiny", "ours", 300)]
    return [
        tests,
        step("smollm2", "ours,trl-packing,unsloth", 150),
        step("llama-8b", "ours", 120),
        step("llama-8b", "trl-packing,unsloth", 180),
    ]


def describe_machine() -> dict[str, Any]:
    """Return what the figures were measured on."""
    program = (
        "import json, torch, transformers; c = torch.cuda; g = c.is_available(); print(json.dumps({"
        "'torch': torch.__version__, 'transformers': transformers.__version__, 'cuda': torch.version.cuda, "
        "'gpu': c.get_device_name(0) if g else None, "
        "'memory_gib': round(c.get_device_properties(0).total_memory / 2**30) if g else None}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    found = json.loads(done.stdout) if done.returncode == 0 else {"failed": done.stderr[-1000:]}
    return {"python": platform.python_version(), "system": platform.platform(), **found}


def run_part(part: Part, seconds: float, environment: Mapping[str, str]) -> dict[str, Any]:
    """Run a part within its limit and the remaining seconds; return its outcome, figures and last lines."""
    limit, started = min(part.seconds, seconds), time.monotonic()
    if limit < 5:
        return {"outcome": "not run", "reason": "no time left"}
    try:
        done = subprocess.run(
            [sys.executable, *part.command], cwd=ROOT, env=dict(environment), timeout=limit, capture_output=True,
            text=True, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        return {
            "outcome": "stopped",
            "reason": f"took more than {limit:.0f} s",
            "output": _tail(error.stdout),
        }
    result = {
        "outcome": "done" if done.returncode == 0 else "failed",
        "seconds": round(time.monotonic() - started, 1),
    }
    if "--json" in part.command and done.stdout.strip():
        return result | {
            "figures": json.loads(done.stdout.splitlines()[-1]),
            "output": _tail(done.stderr),
        }
    return result | {"output": _tail(done.stdout + done.stderr)}


def _tail(output: str | bytes | None) -> str:
    text = output.decode(errors="replace") if isinstance(output, bytes) else output or ""
    return text[-2000:]


def page(evidence: Mapping[str, Any]) -> str:
    """Return the evidence as Markdown."""
    lines = [
        "# GPU evidence",
        "",
        *(f"- {name}: {value}" for name, value in evidence["machine"].items()),
        "",
    ]
    for name, result in evidence["parts"].items():
        lines += [f"## {name}", "", f"{result['outcome']} {result.get('reason', '')}".strip() + "."]
        for contender, figures in result.get("figures", {}).items():
            shown = ", ".join(
                f"{key} {value:.4g}" for key, value in figures.items() if isinstance(value, float)
            )
            lines.append(f"- {contender}: {shown or next(iter(figures.items()))}")
        if "figures" not in result and result.get("output"):
            lines += ["", "```", result["output"].strip(), "```"]
        lines.append("")
    return "\n".join(lines)


def measure(out: Path, wheels: Path | None, device: str, seconds: float) -> int:
    """Run all parts, and write evidence.json and evidence.md after each; returns 1 unless all are done."""
    ends = time.monotonic() + seconds
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as packages:
        for wheel in sorted(wheels.glob("*.whl")) if wheels else ():
            zipfile.ZipFile(wheel).extractall(packages)
        path = os.pathsep.join([packages, str(ROOT)])
        environment = {
            **os.environ,
            "PYTHONPATH": path,
            "HF_HUB_OFFLINE": "1",
            "UNSLOTH_DISABLE_STATISTICS": "1",
        }
        os.environ["PYTHONPATH"] = path
        evidence: dict[str, Any] = {"machine": describe_machine(), "parts": {}}
        for part in parts(device):
            evidence["parts"][part.name] = run_part(part, ends - time.monotonic(), environment)
            (out / "evidence.json").write_text(json.dumps(evidence, indent=1))
            (out / "evidence.md").write_text(page(evidence))
    print((out / "evidence.md").read_text())
    return int(any(result["outcome"] != "done" for result in evidence["parts"].values()))


def locked_entries() -> dict[str, str]:
    """Return the locked entries of the packages above, each with its hashes; TRL is locked for CUDA alone."""
    entries: dict[str, str] = {}
    for lock in ("image-cuda.txt", "lock.txt"):
        for entry in re.split(r"\n(?=\S)", (ROOT / "requirements" / lock).read_text().strip()):
            if (name := entry.split("==")[0]) in PACKAGES:
                entries[name] = entry
    return entries


def collect(wheels: Path, python: str) -> int:
    """Download the locked wheels for another machine's Python; returns 1 if they are too large to be carried."""
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as lock:
        lock.write("\n".join(locked_entries().values()))
        lock.flush()
        command = [
            "download",
            "--quiet",
            "--no-deps",
            "--require-hashes",
            "--only-binary",
            ":all:",
            "--dest",
            str(wheels),
        ]
        command += ["--python-version", python, "--platform", "manylinux_2_28_x86_64"]
        command += ["--platform", "manylinux_2_17_x86_64", "--requirement", lock.name]
        subprocess.run([sys.executable, "-m", "pip", *command], check=True)
    size = sum(wheel.stat().st_size for wheel in wheels.glob("*.whl"))
    print(f"{len(list(wheels.glob('*.whl')))} wheels, {size / 2**20:.1f} MiB")
    return int(size > MAX_WHEELS)


def main(arguments: list[str]) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    collecting = commands.add_parser("collect")
    collecting.add_argument("wheels", type=Path)
    collecting.add_argument("--python", default="3.12")
    measuring = commands.add_parser("measure")
    measuring.add_argument("out", type=Path)
    measuring.add_argument("--wheels", type=Path)
    measuring.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    measuring.add_argument("--seconds", type=float, default=480)
    options = parser.parse_args(arguments)
    if options.command == "collect":
        return collect(options.wheels, options.python)
    return measure(options.out, options.wheels, options.device, options.seconds)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
