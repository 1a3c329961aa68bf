"""The bundle: what a provider gives a job, read as if a stranger had made it."""

import hashlib
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from trainer.encoding import canonical_json
from trainer.errors import ErrorCode, SealingError, UsageError
from trainer.ipc.front_messages import Acknowledged
from trainer.sealing.age import Identity
from trainer.sealing.bundle import (
    MAX_GRANT_BYTES,
    BundleLimits,
    Grant,
    Manifest,
    ManifestFile,
    OpenedBundle,
    pack_bundle,
    unpack_bundle,
)

Forge = Callable[..., bytes]
LIMITS = BundleLimits(max_files=10, max_bytes=1 << 20)


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    folder = tmp_path / "source"
    (folder / "sub").mkdir(parents=True)
    contents = {"train.jsonl": b'{"text": "secret"}\n', "sub/häufig.txt": b"", "Z": b"z" * 2000}
    for name, data in contents.items():
        (folder / name).write_bytes(data)
    return {name: folder / name for name in contents}


@pytest.fixture
def into(tmp_path: Path) -> Path:
    path = tmp_path / "workspace"
    path.mkdir()
    return path


def _open(data: bytes, into: Path) -> OpenedBundle:
    return unpack_bundle(io.BytesIO(data), into, limits=LIMITS)


def _refusal(data: bytes, into: Path) -> str:
    with pytest.raises(SealingError) as caught:
        _open(data, into)
    assert caught.value.code is ErrorCode.BUNDLE_INVALID
    assert list(into.iterdir()) == []
    return str(caught.value)


def _manifest(**files: bytes) -> bytes:
    entries = {
        name: ManifestFile(sha256=hashlib.sha256(data).hexdigest(), size=len(data))
        for name, data in files.items()
    }
    return Manifest(version=1, salt="5a" * 32, files=entries).canonical()


def test_round_trip(files: dict[str, Path], into: Path, grant: Grant) -> None:
    target = io.BytesIO()
    manifest = pack_bundle(target, grant, files)
    opened = _open(target.getvalue(), into)
    assert opened.grant == grant
    assert opened.manifest == manifest
    assert {name: path.read_bytes() for name, path in opened.files.items()} == {
        name: path.read_bytes() for name, path in files.items()
    }
    assert all(path.is_relative_to(into / "data") for path in opened.files.values())
    assert all(path.stat().st_mode & 0o777 == 0o600 for path in opened.files.values())
    assert (into / "data").stat().st_mode & 0o777 == 0o700


def test_the_same_files_give_the_same_bytes(files: dict[str, Path], grant: Grant) -> None:
    one, other = io.BytesIO(), io.BytesIO()
    pack_bundle(one, grant, files)
    for path in files.values():
        path.chmod(0o444)
    pack_bundle(other, grant, dict(reversed(files.items())))
    assert one.getvalue() == other.getvalue()


def test_the_manifest_names_the_dataset(files: dict[str, Path], grant: Grant) -> None:
    manifest = pack_bundle(io.BytesIO(), grant, files)
    assert list(manifest.files) == ["Z", "sub/häufig.txt", "train.jsonl"]
    assert manifest.sha256() == hashlib.sha256(manifest.canonical()).hexdigest()
    files["Z"].write_bytes(b"other")
    assert pack_bundle(io.BytesIO(), grant, files).sha256() != manifest.sha256()


def test_whoever_knows_all_rows_learns_nothing_from_the_digest(
    files: dict[str, Path], grant: Grant
) -> None:
    """The digest travels with receipts and deletion statements: without a salt, candidates could be tried."""
    secret = grant.model_copy(update={"secret": "9c" * 32})
    one, other = (pack_bundle(io.BytesIO(), each, files) for each in (grant, secret))
    assert one.sha256() != other.sha256()
    assert not set(one.salted_digests().values()) & set(other.salted_digests().values())
    assert one.salted_digests().keys() == files.keys()
    assert not set(one.salted_digests().values()) & {file.sha256 for file in one.files.values()}
    manifest = pack_bundle(io.BytesIO(), grant, files)
    guess = manifest.model_copy(update={"salt": "00" * 32})
    assert guess.sha256() != manifest.sha256()
    assert manifest.salt != grant.secret
    assert manifest.split_key().hex() not in {grant.secret, manifest.salt}


def test_a_dataset_that_is_sealed_again_under_one_secret_has_one_manifest(
    files: dict[str, Path], grant: Grant
) -> None:
    """A restarted job finds its checkpoints by it."""
    later = grant.model_copy(update={"expires_at": grant.expires_at + 60})
    assert pack_bundle(io.BytesIO(), grant, files) == pack_bundle(io.BytesIO(), later, files)


def test_a_bundle_by_hand(into: Path, grant: Grant, forge: Forge) -> None:
    data = forge(
        ("grant.json", grant.canonical()), ("data/a", b"1"), ("manifest.json", _manifest(a=b"1"))
    )
    assert _open(data, into).files == {"a": into / "data" / "a"}


@pytest.mark.parametrize(
    "order",
    [
        ["data/a", "grant.json", "manifest.json"],
        ["manifest.json", "data/a", "grant.json"],
        ["grant.json", "manifest.json", "data/a"],
        ["grant.json", "data/a"],
        ["data/a", "manifest.json"],
        ["grant.json", "data/a", "manifest.json", "data/b"],
        ["grant.json", "data/a", "manifest.json", "note.txt"],
        ["grant.json", "note.txt", "data/a", "manifest.json"],
        ["grant.json", "data/b", "data/a", "manifest.json"],
        ["grant.json", "data/a", "data/a", "manifest.json"],
        ["grant.json", "manifest.json"],
        [],
    ],
)
def test_other_orders_are_refused(order: list[str], into: Path, grant: Grant, forge: Forge) -> None:
    names = sorted({name.removeprefix("data/") for name in order if name.startswith("data/")})
    content = {
        "grant.json": grant.canonical(),
        "manifest.json": _manifest(**dict.fromkeys(names or ["a"], b"1")),
    }
    _refusal(forge(*((name, content.get(name, b"1")) for name in order)), into)


@pytest.mark.parametrize("name", ["data/../../escape", "data//etc/passwd", "data/.", "data/a\nb"])
def test_traversal(name: str, into: Path, tmp_path: Path, grant: Grant, forge: Forge) -> None:
    placed = name.encode().ljust(100, b"\0")
    _refusal(forge(("grant.json", grant.canonical()), ("data/x", b"1", {0: placed})), into)
    assert not (tmp_path / "escape").exists()


def test_a_link_to_climb_through(into: Path, tmp_path: Path, grant: Grant, forge: Forge) -> None:
    link = ("data/l", b"", {156: b"2", 157: str(tmp_path).encode()})
    data = forge(("grant.json", grant.canonical()), link, ("data/l/escape", b"1"))
    assert "symbolic link" in _refusal(data, into)
    assert not (tmp_path / "escape").exists()


def test_a_file_as_directory(into: Path, grant: Grant, forge: Forge) -> None:
    data = forge(("grant.json", grant.canonical()), ("data/a", b"1"), ("data/a/b", b"1"))
    assert "name of another" in _refusal(data, into)


@pytest.mark.parametrize(
    "manifest",
    [
        _manifest(a=b"2"),
        _manifest(a=b"11"),
        _manifest(b=b"1"),
        _manifest(a=b"1", b=b"1"),
        b"{}",
        b"not json",
        b'{"files":{},"salt":"%s","version":1}' % (b"5a" * 32),
        _manifest(a=b"1").replace(b'"salt":"%s",' % (b"5a" * 32), b""),
        _manifest(a=b"1").replace(b'"salt":"5a', b'"salt":"'),
        _manifest(a=b"1").replace(b'"version":1', b'"version":2'),
        _manifest(a=b"1").replace(b'"version":1', b'"version":1,"version":1'),
        _manifest(a=b"1").replace(b'"version":1', b'"version":1,"more":1'),
        _manifest(a=b"1").replace(b'"a"', b'"../a"'),
        _manifest(a=b"1").replace(b'"size":1', b'"size":"1"'),
    ],
)
def test_manifests_that_do_not_fit(manifest: bytes, into: Path, grant: Grant, forge: Forge) -> None:
    _refusal(
        forge(("grant.json", grant.canonical()), ("data/a", b"1"), ("manifest.json", manifest)),
        into,
    )


def test_refusals_name_no_private_file(into: Path, grant: Grant, forge: Forge) -> None:
    manifest = _manifest(diagnosis_of_patient_7=b"1")
    broken = manifest.replace(b'"size":1', b'"size":"patient 7"')
    members = [("grant.json", grant.canonical()), ("data/diagnosis_of_patient_7", b"2")]
    assert "patient" not in _refusal(forge(*members, ("manifest.json", manifest)), into)
    assert "patient" not in _refusal(forge(*members, ("manifest.json", broken)), into)


def _changed(grant: Grant, **changes: Any) -> bytes:
    return canonical_json(grant.model_dump(mode="json") | changes)


def test_grants_that_do_not_fit(into: Path, grant: Grant, hybrid: Identity, forge: Forge) -> None:
    recipient = grant.recipients[0]
    for document in (
        b"{}",
        b"[]",
        b"\xff",
        grant.canonical() + b" " * MAX_GRANT_BYTES,
        _changed(grant, version=2),
        _changed(grant, more=1),
        _changed(grant, recipients=[]),
        _changed(grant, recipients=[recipient] * 65),
        _changed(grant, recipients=[recipient[:-1] + ("q" if recipient[-1] != "q" else "p")]),
        _changed(grant, recipients=[recipient, str(hybrid.recipient())]),
        _changed(grant, expires_at="2000000000"),
        _changed(grant, expires_at=-1),
        _changed(grant, secret="short"),
        _changed(grant, allow={"everything": True}),
        json.dumps(grant.model_dump(mode="json"))
        .replace('"version": 1', '"version": 1, "version": 1')
        .encode(),
    ):
        _refusal(
            forge(("grant.json", document), ("data/a", b"1"), ("manifest.json", _manifest(a=b"1"))),
            into,
        )


def test_a_grant_knows_its_recipients(grant: Grant, x25519: Identity) -> None:
    assert [str(recipient) for recipient in grant.result_recipients()] == [str(x25519.recipient())]
    with pytest.raises(ValidationError, match="checksum"):
        Grant.model_validate(grant.model_dump() | {"recipients": ("age1" + "q" * 58,)})


def test_a_representation_shows_no_secret(grant: Grant) -> None:
    """A traceback in a log may have some."""
    manifest = Manifest(
        version=1, salt="7e" * 32, files={"a.jsonl": ManifestFile(sha256="5a" * 32, size=1)}
    )
    for model in (grant, manifest, Acknowledged(acknowledgement="7e" * 32)):
        assert "7e7e" not in repr(model)
        assert "7e7e" in model.model_dump_json()


def test_sixteen_hybrid_recipients_fit(
    grant: Grant, hybrid: Identity, into: Path, forge: Forge
) -> None:
    large = grant.model_copy(update={"recipients": (str(hybrid.recipient()),) * 16})
    data = forge(
        ("grant.json", large.canonical()), ("data/a", b"1"), ("manifest.json", _manifest(a=b"1"))
    )
    assert _open(data, into).grant == large


def test_limits(into: Path, grant: Grant, forge: Forge) -> None:
    members = [(f"data/{number:02}", b"1") for number in range(9)]
    assert "at most 10" in _refusal(
        forge(("grant.json", grant.canonical()), *members, ("x", b"")), into
    )
    assert "at most 1048576" in _refusal(
        forge(("grant.json", grant.canonical()), ("data/a", bytes(1 << 20))), into
    )


def test_any_truncation_leaves_nothing(files: dict[str, Path], into: Path, grant: Grant) -> None:
    target = io.BytesIO()
    pack_bundle(target, grant, files)
    for size in range(0, len(target.getvalue()), 500):
        _refusal(target.getvalue()[:size], into)


def test_a_grant_is_judged_before_data_is_written(into: Path, grant: Grant, forge: Forge) -> None:
    def refuse(_grant: Grant) -> None:
        assert list(into.iterdir()) == []
        raise SealingError(ErrorCode.GRANT_EXPIRED, "late")

    data = forge(
        ("grant.json", grant.canonical()), ("data/a", b"1"), ("manifest.json", _manifest(a=b"1"))
    )
    with pytest.raises(SealingError, match="late"):
        unpack_bundle(io.BytesIO(data), into, limits=LIMITS, check_grant=refuse)
    assert list(into.iterdir()) == []


def test_data_that_is_there_is_not_touched(into: Path, grant: Grant, forge: Forge) -> None:
    (into / "data").mkdir()
    (into / "data" / "mine").write_bytes(b"")
    data = forge(
        ("grant.json", grant.canonical()), ("data/a", b"1"), ("manifest.json", _manifest(a=b"1"))
    )
    with pytest.raises(UsageError) as caught:
        _open(data, into)
    assert caught.value.code is ErrorCode.OUTPUT_EXISTS
    assert [path.name for path in (into / "data").iterdir()] == ["mine"]


@pytest.mark.parametrize("name", ["", "../a", "/a", "a/../b", "n" * 96, "a\nb"])
def test_names_that_cannot_be_packed(name: str, tmp_path: Path, grant: Grant) -> None:
    (tmp_path / "a").write_bytes(b"")
    with pytest.raises(UsageError):
        pack_bundle(io.BytesIO(), grant, {name: tmp_path / "a"})


def test_what_cannot_be_packed(tmp_path: Path, grant: Grant) -> None:
    for files, code in (
        ({}, ErrorCode.USAGE),
        ({"a": tmp_path}, ErrorCode.USAGE),
        ({"a": tmp_path / "absent"}, ErrorCode.FILE_NOT_FOUND),
    ):
        with pytest.raises(UsageError) as caught:
            pack_bundle(io.BytesIO(), grant, files)
        assert caught.value.code is code
