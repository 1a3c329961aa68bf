"""The search for planted strings: every form is found, wherever it lies; clean data gives nothing."""

from __future__ import annotations

import base64
import bz2
import gzip
import io
import json
import lzma
import os
import struct
import subprocess
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow
import pytest

if TYPE_CHECKING:
    from tokenizers import Tokenizer

SCRIPTS = Path(__file__).parents[1] / "scripts"
CANARY = "Zephyr-q7Wombat/ünicorn~41"
SURROUNDINGS = os.urandom(5000).replace(b"\0", b"x")


@pytest.fixture
def found(canary_scan: Any) -> Callable[..., set[str]]:
    """`found(data)`: forms of the canary in these bytes."""

    def find(data: bytes, *, block: int = 1 << 20, canary: str | bytes = CANARY) -> set[str]:
        search = canary_scan.Search(canary_scan.needles([canary]), block=block)
        search.content("data", data)
        return {hit.form for hit in search.findings.hits}

    return find


def wrapped(text: bytes, columns: int) -> bytes:
    return b"\n".join(text[at : at + columns] for at in range(0, len(text), columns))


RAW = CANARY.encode()
FORMS = {
    "utf-8": RAW,
    "upper case": CANARY.upper().encode(),
    "utf-16-le": CANARY.encode("utf-16-le"),
    "utf-16-be": CANARY.encode("utf-16-be"),
    "utf-32-le": CANARY.encode("utf-32-le"),
    "base64, first alignment": base64.b64encode(b"abc" + RAW + b"def"),
    "base64, second alignment": base64.b64encode(b"abcd" + RAW + b"e"),
    "base64, third alignment": base64.b64encode(b"abcde" + RAW),
    "base64, url-safe": base64.urlsafe_b64encode(RAW),
    "base64 of utf-16": base64.b64encode(CANARY.encode("utf-16-le")),
    "base64, wrapped": wrapped(base64.b64encode(RAW), 11),
    "hex, lower": RAW.hex().encode(),
    "hex, upper": RAW.hex().upper().encode(),
    "hex, spaced": RAW.hex(" ").encode(),
    "hex, colons": RAW.hex(":").encode(),
    "percent": b"".join(b"%%%02X" % byte for byte in RAW),
    "JSON": json.dumps(CANARY).encode(),
    "JSON, all escaped": b"".join(b"\\u%04X" % ord(letter) for letter in CANARY),
    "Python bytes": repr(RAW).encode(),
    "references": b"".join(b"&#%d;" % ord(letter) for letter in CANARY),
    "reversed": CANARY[::-1].encode(),
    "broken": wrapped(RAW, 9),
}


@pytest.mark.parametrize("content", FORMS.values(), ids=list(FORMS))
def test_each_form_is_found(content: bytes, found: Callable[..., set[str]]) -> None:
    assert found(SURROUNDINGS + content + SURROUNDINGS)


@pytest.mark.parametrize("content", FORMS.values(), ids=list(FORMS))
def test_a_border_between_blocks_hides_nothing(
    content: bytes, found: Callable[..., set[str]]
) -> None:
    for before in range(0, len(content), 7):
        data = b"." * (1024 - before) + content + b"." * 2000
        assert found(data, block=1024), before


def test_clean_data_gives_nothing(found: Callable[..., set[str]]) -> None:
    clean = (
        os.urandom(1 << 20) + bytes(1 << 16) + base64.b64encode(os.urandom(1 << 16)) + RAW[:-3] * 10
    )
    assert found(clean) == set()


def test_raw_bytes_of_a_key(found: Callable[..., set[str]]) -> None:
    key = os.urandom(32)
    for content in (key, base64.b64encode(b"?" + key), key.hex().upper().encode()):
        assert found(SURROUNDINGS + content + SURROUNDINGS, canary=key)
    assert not found(SURROUNDINGS + key[:-1], canary=key)


def zip_of(content: bytes) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("inner/file", content)
    return packed.getvalue()


def tar_of(content: bytes, mode: str = "w:gz") -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode=mode) as archive:  # type: ignore[call-overload]
        entry = tarfile.TarInfo("inner")
        entry.size = len(content)
        archive.addfile(entry, io.BytesIO(content))
    return packed.getvalue()


def zstd_of(content: bytes) -> bytes:
    return bytes(pyarrow.Codec("zstd").compress(content, asbytes=True))


PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "bzip2": bz2.compress,
    "xz": lzma.compress,
    "zstd": zstd_of,
    "zlib": zlib.compress,
    "zip": zip_of,
    "tar.gz": tar_of,
    "zip in tar": lambda content: tar_of(zip_of(content), "w"),
    "gzip in gzip": lambda content: gzip.compress(gzip.compress(content)),
}


@pytest.mark.parametrize("pack", PACKERS.values(), ids=list(PACKERS))
def test_packed_content_is_searched(
    pack: Callable[[bytes], bytes], found: Callable[..., set[str]]
) -> None:
    text = SURROUNDINGS.hex().encode()  # packs well
    packed = pack(text + RAW + text)
    assert RAW not in packed
    assert found(packed)
    assert not found(pack(text))


def test_token_ids_are_found(canary_scan: Any, backend: Tokenizer, tmp_path: Path) -> None:
    backend.save(str(tmp_path / "tokenizer.json"))
    tokenize = canary_scan.tokenizer_of(tmp_path)
    ids = tokenize(f"<|im_start|>user\nplease say {CANARY}, twice<|im_end|>")
    leaks = {
        name: struct.pack(f"<{len(ids)}{code}", *ids)
        for name, code in (("2", "H"), ("4", "i"), ("8", "q"))
    }
    leaks |= {"JSON": json.dumps(ids).encode(), "indented": json.dumps(ids, indent=2).encode()}
    leaks["printed"] = b"tensor([" + wrapped(", ".join(map(str, ids)).encode(), 40) + b"])"
    for name, content in leaks.items():
        search = canary_scan.Search(canary_scan.needles([CANARY], tokenize))
        search.content("ids", SURROUNDINGS + content)
        assert search.findings.hits, name
    other = tokenize("quite another text, of about the same length as the first one was")
    search = canary_scan.Search(canary_scan.needles([CANARY], tokenize))
    search.content("ids", json.dumps(other).encode() + struct.pack(f"<{len(other)}q", *other))
    assert not search.findings.hits


def run(*words: object, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    command = [SCRIPTS / "canary-scan", *words]
    return subprocess.run(list(map(str, command)), input=stdin, capture_output=True, check=False)


def test_the_command_says_where_and_never_what(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    (tree / "deep").mkdir(parents=True)
    (tree / "deep" / "log").write_bytes(b"secret surroundings " + RAW + b" more of them")
    (tree / CANARY.replace("/", "-")).touch()
    (tree / "link").symlink_to("/nowhere/" + RAW.hex())
    listed = tmp_path / "canaries"
    listed.write_text(CANARY + "\n" + CANARY.replace("/", "-") + "\n")
    ran = run("--canaries-from", listed, tree)
    assert ran.returncode == 1
    out = ran.stdout.decode()
    assert f"{tree}/deep/log:20: canary 0 (utf-8)" in out
    assert "(name)" in out
    assert f"{tree}/link (link)" in out
    assert "surroundings" not in out + ran.stderr.decode()

    assert run("--canary", CANARY, "-", stdin=RAW).returncode == 1
    assert run("--canary", "something else", tree).returncode == 0


def test_what_is_no_proof_has_an_exit_code_of_its_own(tmp_path: Path) -> None:
    assert run("--canary", "short", tmp_path).returncode == 2
    assert run(tmp_path).returncode == 2
    assert run("--canary", CANARY, tmp_path / "absent").returncode == 2
    assert run("--canary", CANARY, "--tokens", tmp_path, tmp_path).returncode == 2
    (tmp_path / "cut.gz").write_bytes(gzip.compress(SURROUNDINGS)[:100])
    broken = run("--canary", CANARY, tmp_path)
    assert broken.returncode == 2
    assert b"not unpacked" in broken.stderr
