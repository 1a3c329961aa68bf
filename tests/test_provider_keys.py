"""Provider keys: text forms, domains, and the identity file that stock age still reads."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest

from trainer.errors import ErrorCode, UsageError
from trainer.provider import create_identity, identity_files, read_identity_file
from trainer.provider_keys import (
    ProviderKey,
    generate_provider_key,
    is_signed_by,
    parse_provider_key,
)
from trainer.sealing.age import ScryptRecipient

KEY = ProviderKey(bytes(range(32)))


def test_the_text_forms() -> None:
    assert str(KEY) == f"ed25519-secret:{bytes(range(32)).hex()}"
    assert parse_provider_key(str(KEY)).public == KEY.public
    assert str(KEY) not in repr(KEY)
    assert generate_provider_key().public != generate_provider_key().public


@pytest.mark.parametrize(
    "text",
    [
        "",
        KEY.public,
        str(KEY)[:-1],
        str(KEY) + "0",
        str(KEY).upper(),
        "ed25519-secret:" + "zz" * 32,
    ],
)
def test_other_text_is_no_key_and_is_not_quoted(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_provider_key(text)
    assert caught.value.code is ErrorCode.IDENTITY_INVALID
    assert "zz" not in str(caught.value)


def test_a_signature_is_of_one_key_one_domain_and_one_document() -> None:
    signature = KEY.sign("a", b"document")
    assert is_signed_by(KEY.public, signature, "a", b"document")
    for public, signed, domain, document in (
        (ProviderKey(bytes(32)).public, signature, "a", b"document"),
        (KEY.public, signature[:-1], "a", b"document"),
        (KEY.public, b"", "a", b"document"),
        (KEY.public, signature, "b", b"document"),
        (KEY.public, signature, "a\0docu", b"ment"),
        (KEY.public, signature, "a", b"document."),
        ("ed25519:" + "ff" * 32, signature, "a", b"document"),
        ("ed25519:00", signature, "a", b"document"),
    ):
        assert not is_signed_by(public, signed, domain, document)


def test_an_identity_file_has_a_provider_key_on_a_line_that_age_skips(tmp_path: Path) -> None:
    path = tmp_path / "key"
    recipient = str(create_identity(path).identities[0].recipient())
    key = read_identity_file(path).provider_key
    assert key is not None
    assert [str(identity.recipient()) for identity in read_identity_file(path).identities] == [
        recipient
    ]
    lines = path.read_text().splitlines()
    assert [line for line in lines if not line.startswith("#")] == [
        str(read_identity_file(path).identities[0])
    ]
    assert f"# provider key: {key.public}" in lines
    # of age-keygen, or of an earlier release
    path.write_text("".join(f"{line}\n" for line in lines if "provider" not in line))
    assert read_identity_file(path).provider_key is None
    path.write_text("".join(f"{line}\n" for line in (*lines, *lines)))
    with pytest.raises(UsageError, match="one provider key"):
        read_identity_file(path)


def test_an_identity_file_may_have_a_passphrase(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pyrage = pytest.importorskip("pyrage")
    monkeypatch.setattr(identity_files, "ScryptRecipient", partial(ScryptRecipient, work_factor=10))
    path = tmp_path / "key"
    made = create_identity(path, passphrase=b"open sesame")
    content = path.read_bytes()
    assert b"AGE-SECRET-KEY" not in content
    assert b"provider" not in content
    assert b"AGE-SECRET-KEY" in pyrage.passphrase.decrypt(content, "open sesame")
    asked: list[Path] = []

    def ask(file: Path) -> bytes:
        asked.append(file)
        return b"open sesame"

    read = read_identity_file(path, ask)
    assert (str(read.provider_key), asked) == (str(made.provider_key), [path])
    assert list(map(str, read.identities)) == list(map(str, made.identities))
    for wrong in (None, lambda _: b"sesame"):
        with pytest.raises(UsageError) as caught:
            read_identity_file(path, wrong)
        assert caught.value.code is ErrorCode.IDENTITY_INVALID
    path.write_bytes(content[:-1])
    with pytest.raises(UsageError, match="could not be decrypted"):
        read_identity_file(path, ask)
