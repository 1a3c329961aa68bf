"""Both ways with implementations that share no code with ours: the age command, npm's age-encryption, pyrage."""

import fcntl
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from trainer.sealing.age import (
    Identity,
    decrypt_file,
    encrypt_file,
    generate_identity,
    parse_identity_file,
    parse_recipient,
)

SIZES = [0, 1, 65535, 65536, 65537, 3 << 20]
SCRIPTS = Path(__file__).parents[1] / "interop"

Plaintext = Callable[[int], bytes]
Run = Callable[..., str]


def _run(*command: str | Path) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=120).stdout


@pytest.fixture(scope="session")
def age() -> str:
    command = shutil.which("age")
    if command is None:
        pytest.skip("the age command is not installed")
    return command


@pytest.fixture(scope="session")
def npm_age(pytestconfig: pytest.Config) -> Run:
    npm, node = shutil.which("npm"), shutil.which("node")
    if npm is None or node is None:
        pytest.skip("npm is not installed")
    folder = pytestconfig.rootpath / ".cache" / "age-interop"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as turn:
        # Tests run in two processes, and npm begins by removing what is there.
        fcntl.flock(turn, fcntl.LOCK_EX)
        _install(npm, folder)
    return lambda *arguments: _run(node, folder / "age.mjs", *arguments)


def _install(npm: str, folder: Path) -> None:
    for script in SCRIPTS.iterdir():
        shutil.copy(script, folder)
    lock = (folder / "package-lock.json").read_bytes()
    installed = folder / "installed-package-lock.json"
    if installed.exists() and installed.read_bytes() == lock:
        return
    done = subprocess.run(
        [npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund"],
        cwd=folder,
        check=False,
        capture_output=True,
        text=True,
        timeout=180,
    )
    if done.returncode:
        pytest.skip(f"npm could not install age-encryption: exit code {done.returncode}")
    installed.write_bytes(lock)


@pytest.fixture(params=SIZES)
def plain(request: pytest.FixtureRequest, tmp_path: Path, plaintext: Plaintext) -> Path:
    path = tmp_path / "plain"
    path.write_bytes(plaintext(request.param))
    return path


@pytest.fixture
def identity_file(tmp_path: Path, x25519: Identity) -> Path:
    path = tmp_path / "identity"
    path.write_text(f"# comment\n{x25519}\n")
    return path


def test_the_age_command_opens_ours(
    age: str, plain: Path, identity_file: Path, x25519: Identity
) -> None:
    encrypt_file(plain, plain.with_suffix(".age"), [x25519.recipient()])
    # With -o it makes no file for no data.
    command = (
        age,
        "-d",
        "-i",
        identity_file,
        plain.with_suffix(".age"),
    )
    opened = subprocess.run(command, check=True, capture_output=True, timeout=120).stdout
    assert opened == plain.read_bytes()


@pytest.mark.parametrize("armor", [(), ("--armor",)])
def test_we_open_the_age_command_s(
    age: str, plain: Path, x25519: Identity, armor: tuple[str, ...]
) -> None:
    _run(age, *armor, "-r", str(x25519.recipient()), "-o", plain.with_suffix(".age"), plain)
    decrypt_file(plain.with_suffix(".age"), plain.with_suffix(".out"), [x25519])
    assert plain.with_suffix(".out").read_bytes() == plain.read_bytes()


def test_we_read_what_age_keygen_writes(tmp_path: Path) -> None:
    keygen = shutil.which("age-keygen")
    if keygen is None:
        pytest.skip("the age-keygen command is not installed")
    _run(keygen, "-o", tmp_path / "identity")
    (identity,) = parse_identity_file((tmp_path / "identity").read_text())
    assert str(identity.recipient()) == _run(keygen, "-y", tmp_path / "identity").strip()


@pytest.mark.parametrize("hybrid", [True, False])
def test_npm_opens_ours(npm_age: Run, plain: Path, hybrid: bool) -> None:
    identity = generate_identity(hybrid=hybrid)
    encrypt_file(plain, plain.with_suffix(".age"), [identity.recipient()])
    npm_age("decrypt", str(identity), plain.with_suffix(".age"), plain.with_suffix(".out"))
    assert plain.with_suffix(".out").read_bytes() == plain.read_bytes()


@pytest.mark.parametrize("hybrid", [True, False])
def test_we_open_npm_s(npm_age: Run, plain: Path, hybrid: bool) -> None:
    identity = generate_identity(hybrid=hybrid)
    npm_age("encrypt", str(identity.recipient()), plain, plain.with_suffix(".age"))
    decrypt_file(plain.with_suffix(".age"), plain.with_suffix(".out"), [identity])
    assert plain.with_suffix(".out").read_bytes() == plain.read_bytes()


def test_npm_derives_the_same_recipient(npm_age: Run, hybrid: Identity) -> None:
    recipient = npm_age("recipient", str(hybrid)).strip()
    assert str(parse_recipient(recipient)) == str(hybrid.recipient())


def test_pyrage_opens_ours(plain: Path, x25519: Identity) -> None:
    pyrage = pytest.importorskip("pyrage")
    encrypt_file(plain, plain.with_suffix(".age"), [x25519.recipient()])
    identity = pyrage.x25519.Identity.from_str(str(x25519))
    assert str(identity.to_public()) == str(x25519.recipient())
    assert pyrage.decrypt(plain.with_suffix(".age").read_bytes(), [identity]) == plain.read_bytes()


def test_we_open_pyrage_s(plain: Path, x25519: Identity) -> None:
    pyrage = pytest.importorskip("pyrage")
    recipient = pyrage.x25519.Recipient.from_str(str(x25519.recipient()))
    plain.with_suffix(".age").write_bytes(pyrage.encrypt(plain.read_bytes(), [recipient]))
    decrypt_file(plain.with_suffix(".age"), plain.with_suffix(".out"), [x25519])
    assert plain.with_suffix(".out").read_bytes() == plain.read_bytes()
