"""scripts/image without an engine: what it reads, what it refuses, and what it says."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
DIGEST = "sha256:" + "1" * 64


@pytest.fixture(scope="module")
def modules() -> Iterator[Any]:
    """`modules("image_base")`: a module of scripts/."""
    before = sys.path[:]
    sys.path.insert(0, str(ROOT / "scripts"))
    try:
        yield importlib.import_module
    finally:
        sys.path[:] = before


# the command line


@pytest.mark.parametrize(
    "base", ["python:3.11", "python@sha256:12", "Debian", "", f"two names@{DIGEST}"]
)
def test_a_base_without_digest_is_refused(
    modules: Any, base: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        modules("build_image").main(["cpu", "--base", base])
    assert ended.value.code == 2
    assert "expected debian or NAME@sha256:DIGEST" in capsys.readouterr().err


def test_a_base_is_taken_by_digest(modules: Any) -> None:
    for base in (f"localhost:5000/base@{DIGEST}", f"python@{DIGEST}", "debian"):
        assert modules("build_image").parser().parse_args(["cuda", "--base", base]).base == base


def test_a_compiler_is_for_bases_that_are_made_here(
    modules: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        modules("build_image").main(["cpu", "--base", f"python@{DIGEST}", "--compiler"])
    assert "--compiler needs --base debian" in capsys.readouterr().err


def test_its_help_needs_no_environment() -> None:
    done = subprocess.run(
        [ROOT / "scripts" / "image", "--help"], capture_output=True, text=True, check=True
    )
    for said in ("--base", "sbom.cdx.json", "scripts/container-packages", "Exit code"):
        assert said in done.stdout


# the base


def test_debian_is_found_in_both_forms_of_apts_sources(modules: Any, tmp_path: Path) -> None:
    base = modules("image_base")
    (tmp_path / "sources.list.d").mkdir()
    (tmp_path / "sources.list").write_text(
        "# deb http://commented.test/debian bookworm main\n"
        "deb [signed-by=/key.gpg] http://one.test/debian bookworm main contrib\n"
        "deb http://other.test/apt cloud-bookworm main\n"
    )
    (tmp_path / "sources.list.d" / "debian.sources").write_text(
        "Types: deb deb-src\nURIs: http://two.test/debian-security\nSuites: bookworm-security\n"
        "Components: main\nSigned-By: /key.gpg\n\n"
        "Types: deb\nURIs: http://three.test/x\nSuites: nodistro\nComponents: main\n"
    )
    (tmp_path / "sources.list.d" / "disabled.list.save").write_text(
        "deb http://four.test/debian bookworm main\n"
    )
    found = {(source.address, source.suite) for source in base.apt_sources(tmp_path)}
    assert found == {
        ("http://one.test/debian", "bookworm"),
        ("http://two.test/debian-security", "bookworm-security"),
    }


def test_a_machine_without_debians_packages_is_told_what_to_do(
    modules: Any, tmp_path: Path
) -> None:
    with pytest.raises(
        modules("image_errors").ImageError, match="expected an apt source of Debian's bookworm"
    ) as caught:
        modules("image_base").apt_sources(tmp_path)
    assert "--base NAME@sha256:DIGEST" in caught.value.hint


def test_an_image_of_one_layer_is_the_same_bytes_twice(modules: Any, tmp_path: Path) -> None:
    base = modules("image_base")
    (tmp_path / "base.tar").write_bytes(b"a layer")
    digests = set()
    for name in ("first", "second"):
        base.write_layout(tmp_path / name, tmp_path / "base.tar", 1_800_000_000)
        digests.add(base.layout_digest(tmp_path / name))
    assert len(digests) == 1
    (config,) = (
        document
        for blob in (tmp_path / "first" / "blobs" / "sha256").iterdir()
        if b"diff_ids" in blob.read_bytes() and (document := json.loads(blob.read_bytes()))
    )
    assert config["created"] == "2027-01-15T08:00:00Z"


# the wheels


def test_wheels_are_kept_if_their_hash_is_locked_and_removed_otherwise(
    modules: Any, tmp_path: Path
) -> None:
    wheels = modules("image_wheels")
    for name in ("good_one-1.0-py3-none-any.whl", "bad-1.0-py3-none-any.whl", "stray.txt"):
        (tmp_path / name).write_bytes(name.encode())
    locked = wheels.wheel_digests(tmp_path)["good-one"]
    entries = {"good-one": frozenset({locked}), "bad": frozenset({"0" * 64})}
    assert wheels._present(tmp_path, entries) == {"good-one"}
    assert [path.name for path in tmp_path.iterdir()] == ["good_one-1.0-py3-none-any.whl"]


@pytest.mark.parametrize("variant", ["cpu", "cuda"])
def test_every_locked_package_has_hashes(modules: Any, variant: str) -> None:
    entries = dict(
        modules("image_wheels").locked_hashes(ROOT / "requirements" / f"image-{variant}.txt")
    )
    assert {"torch", "transformers", "dstack-sdk", "nvidia-ml-py"} <= set(entries)
    assert all(entries.values())


def test_another_hash_is_named_and_explained(modules: Any) -> None:
    said = (
        "ERROR: THESE PACKAGES DO NOT MATCH THE HASHES FROM THE REQUIREMENTS FILE. If you have updated …\n"
        "    torch==2.13.0+cpu from http://index.test/torch.whl (from -r image-cpu.txt (line 1)):\n"
        "        Expected sha256 aa\n             Got        bb\n"
    )
    error = modules("image_wheels")._download_error(Path("image-cpu.txt"), said)
    assert str(error).startswith("expected the file of torch==2.13.0+cpu that image-cpu.txt locks")
    assert "If a hash differs" in error.hint
    assert "If a hash differs" in (ROOT / "docs" / "deploy.md").read_text("utf-8")


def test_no_address_of_an_index_is_repeated(modules: Any) -> None:
    said = "WARNING: x\nERROR: Could not find https://user:secret@index.test/simple/torch/ now\n"
    error = modules("image_wheels")._download_error(Path("image-cpu.txt"), said)
    assert "secret" not in str(error)
    assert "Could not find (address) now" in str(error)


# the contents


def test_licences_are_read_as_packages_state_them(modules: Any, tmp_path: Path) -> None:
    contents = modules("image_contents")
    status = "\n\n".join(
        f"Package: {name}\nStatus: install ok {state}\nArchitecture: amd64\nVersion: 1:2.0-3"
        for name, state in (
            ("formal", "installed"),
            ("prose", "installed"),
            ("silent", "installed"),
            ("gone", "config-files"),
        )
    )
    for path, text in (
        ("usr/lib/os-release", 'ID=debian\nVERSION_ID="12"\n'),
        ("var/lib/dpkg/status", status),
        (
            "usr/share/doc/formal/copyright",
            "Format: x\n\nFiles: *\nLicense: GPL-3+\n\nFiles: a\nLicense: MIT\n",
        ),
        (
            "usr/share/doc/prose/copyright",
            "License: any words\nsee /usr/share/common-licenses/GPL-2.\n",
        ),
    ):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    packages = tmp_path / "opt/trainer/lib/python3.11/site-packages/some_thing-1.2.dist-info"
    packages.mkdir(parents=True)
    (packages / "METADATA").write_text(
        "Metadata-Version: 2.4\nName: Some.thing\nVersion: 1.2\nLicense-Expression: MIT\n"
    )
    first, second = (
        contents.bill_of_materials(
            tmp_path,
            image_digest=DIGEST,
            created=0,
            wheel_digests={"some-thing": "2" * 64},
            variant="cpu",
        )
        for _ in range(2)
    )
    assert first == second, "no time and no random number of its own"
    components = json.loads(first)["components"]
    licences = {
        component["purl"]: [
            value for entry in component["licenses"] for value in named(entry["license"])
        ]
        for component in components
    }
    assert licences == {
        "pkg:deb/debian/formal@1:2.0-3?arch=amd64&distro=debian-12": ["GPL-3+", "MIT"],
        "pkg:deb/debian/prose@1:2.0-3?arch=amd64&distro=debian-12": ["GPL-2"],
        "pkg:deb/debian/silent@1:2.0-3?arch=amd64&distro=debian-12": ["not declared"],
        "pkg:pypi/some-thing@1.2": ["MIT"],
    }
    hashes = {component["purl"]: component.get("hashes") for component in components}
    assert hashes["pkg:pypi/some-thing@1.2"] == [{"alg": "SHA-256", "content": "2" * 64}]


def named(licence: dict[str, str]) -> Iterator[str]:
    """What the format calls the identifier or the name of a licence."""
    return (licence[key] for key in ("id", "name") if key in licence)
