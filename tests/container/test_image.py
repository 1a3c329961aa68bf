"""What is in the image, and what is not."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.container.conftest import BuiltImage
from tests.container.engine import ROOT

MOST_BYTES = 1_500_000_000
SITE_PACKAGES = "/opt/trainer/lib/python3.11/site-packages"


@pytest.fixture(scope="session")
def files(cpu_image: BuiltImage) -> list[str]:
    """The paths of all files and directories."""
    return cpu_image.run("find", "/", "-xdev").splitlines()


@pytest.fixture(scope="session")
def contents(cpu_image: BuiltImage) -> dict[str, Any]:
    """The list of contents that was written with the image."""
    document = json.loads(Path(cpu_image.output["sbom"]).read_bytes())
    assert isinstance(document, dict)
    return document


# size


def test_it_is_no_larger_than_was_decided(cpu_image: BuiltImage) -> None:
    assert cpu_image.engine.inspect(cpu_image.reference)["Size"] <= MOST_BYTES
    assert cpu_image.output["unpacked_bytes"] <= MOST_BYTES
    assert cpu_image.output["packed_bytes"] < cpu_image.output["unpacked_bytes"] / 2


def test_its_digest_is_the_one_that_was_printed(cpu_image: BuiltImage) -> None:
    assert cpu_image.reference.endswith(f"@{cpu_image.output['digest']}")


# what no job uses


def test_no_program_lends_its_owners_rights(cpu_image: BuiltImage) -> None:
    assert cpu_image.run("find", "/", "-xdev", "-perm", "/6000", "-type", "f") == ""


def test_nothing_in_it_installs(cpu_image: BuiltImage, files: list[str]) -> None:
    program = "import importlib.util, json; print(json.dumps([name for name in {names} if {find}]))".format(
        names=["pip", "setuptools", "uv", "ensurepip"], find="importlib.util.find_spec(name)"
    )
    assert cpu_image.python(program) == []
    assert [path for path in files if re.search(r"/(pip|setuptools|uv)([-.][^/]*)?$", path)] == []
    assert [
        path for path in files if re.search(r"bin/(apt|apt-get|pip3?|uv|gcc|g\+\+|cc)$", path)
    ] == []


def test_it_holds_no_simulator(cpu_image: BuiltImage, files: list[str]) -> None:
    assert f"{SITE_PACKAGES}/trainer/cli/app.py" in files
    assert [
        path for path in files if "simulator" in path and "/trainer/" in path.removeprefix("/opt")
    ] == []
    found = cpu_image.run(
        "sh", "-c", f"grep --recursive --files-with-matches DevelopmentPki {SITE_PACKAGES} || true"
    )
    assert found == "", "forges evidence"


def test_it_holds_no_tests_and_no_headers(files: list[str]) -> None:
    packages = [
        path.removeprefix(SITE_PACKAGES) for path in files if path.startswith(SITE_PACKAGES)
    ]
    assert [path for path in packages if re.search(r"/tests(/|$)", path)] == []
    assert [
        path
        for path in packages
        if path.startswith(("/torch/test/", "/torch/include/", "/pyarrow/include/"))
    ] == []
    assert [path for path in packages if path.startswith("/torch/bin/")] == [
        "/torch/bin/torch_shm_manager"
    ]
    assert [path for path in packages if path.endswith(".a")] == []


def test_documentation_is_left_out_but_not_copyright(
    cpu_image: BuiltImage, files: list[str]
) -> None:
    documents = cpu_image.run("find", "/usr/share/doc", "-type", "f").splitlines()
    packages = cpu_image.run("dpkg-query", "--show", "--showformat", "${Package}\\n").split()
    assert len(packages) > 50
    assert {name for name in packages if f"/usr/share/doc/{name}" not in files} == set()
    assert {Path(path).name for path in documents} == {"copyright"}
    assert [path for path in files if re.match(r"/usr/share/(man|info|locale)/.+/.+", path)] == []


def test_it_holds_nothing_of_the_machine_that_built_it(
    files: list[str], cpu_image: BuiltImage
) -> None:
    # The engine lays its own files over these two.
    history = json.dumps(cpu_image.engine.inspect(cpu_image.reference))
    assert str(ROOT) not in history
    assert not {"/etc/apt/sources.list", "/etc/pip.conf", "/build", "/wheels"} & set(files)
    assert [path for path in files if ".cache" in Path(path).parts] == [], "of any home"
    assert [path for path in files if path.startswith("/var/log/")] == []
    assert [path for path in files if path.endswith("direct_url.json")] == []


# who runs what


def test_the_children_have_accounts_that_nobody_can_log_in_to(cpu_image: BuiltImage) -> None:
    accounts = {
        line.split(":")[0]: line.split(":")[2:]
        for line in cpu_image.run("cat", "/etc/passwd").splitlines()
    }
    for name, number in (("front", "901"), ("worker", "902")):
        assert accounts[name] == [number, number, "", "/nonexistent", "/usr/sbin/nologin"]
    assert cpu_image.run("id", "--user") == "0\n"


def test_the_command_line_works_in_it(cpu_image: BuiltImage) -> None:
    hardened = ("--read-only", "--cap-drop", "ALL", "--security-opt", "no-new-privileges:true")
    helped = cpu_image.run("trainer", "--help", options=hardened)
    assert {"run", "verify", "submit"} <= set(helped.split())


def test_no_module_is_compiled_at_a_start(cpu_image: BuiltImage) -> None:
    program = (
        "import json, sys, trainer.cli.app\n"
        "stale = [name for name, module in sorted(sys.modules.items())"
        " if (spec := getattr(module, '__spec__', None)) and spec.cached"
        " and not __import__('os').path.exists(spec.cached)]\n"
        "print(json.dumps(stale))"
    )
    assert cpu_image.python(program) == []


# the list of contents


def test_the_list_names_every_package(cpu_image: BuiltImage, contents: dict[str, Any]) -> None:
    listed = {component["purl"].partition("?")[0] for component in contents["components"]}
    lock = (ROOT / "requirements" / "image-cpu.txt").read_text("utf-8")
    locked = dict(re.findall(r"(?m)^([a-z0-9-]+)==(\S+)", lock))
    del locked["setuptools"]  # what built the project leaves the image
    names = {f"pkg:pypi/{name}@{version.replace('+', '%2B')}" for name, version in locked.items()}
    assert {name for name in listed if name.startswith("pkg:pypi/")} - names == {
        "pkg:pypi/confidential-trainer@0.1.0"
    }
    assert names <= listed
    packages = cpu_image.run("dpkg-query", "--show", "--showformat", "${Package}\\n").split()
    debian = {
        name.split("/")[2].partition("@")[0] for name in listed if name.startswith("pkg:deb/")
    }
    assert {name.replace("%2B", "+") for name in debian} == set(packages)


def test_the_list_gives_licences_and_digests_but_no_addresses(contents: dict[str, Any]) -> None:
    assert [
        component["name"] for component in contents["components"] if not component["licenses"]
    ] == []
    python = [
        component
        for component in contents["components"]
        if component["purl"].startswith("pkg:pypi/")
    ]
    unhashed = [component["name"] for component in python if not component.get("hashes")]
    assert unhashed == ["confidential-trainer"]
    assert set(re.findall(r"\w+://[^/\"]+", json.dumps(contents))) == {"http://cyclonedx.org"}
