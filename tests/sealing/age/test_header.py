"""What a header may hold, and who may share one."""

import io
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.errors import ErrorCode, SealingError, UsageError
from trainer.sealing.age import (
    Identity,
    Recipient,
    RecipientType,
    ScryptIdentity,
    ScryptRecipient,
    Stanza,
    decrypt,
    encrypt,
    identity_from_seed,
)
from trainer.sealing.age.header import MAX_HEADER_BYTES


def _sealed(recipients: Sequence[Recipient]) -> bytes:
    target = io.BytesIO()
    encrypt(io.BytesIO(b"data"), target, recipients)
    return target.getvalue()


def _code(data: bytes, identity: Identity) -> ErrorCode:
    with pytest.raises(SealingError) as caught:
        decrypt(io.BytesIO(data), io.BytesIO(), [identity])
    return caught.value.code


def test_the_hybrid_header_has_the_size_of_the_format(hybrid: Identity) -> None:
    assert len(_sealed([hybrid.recipient()])) - len(b"data") - 16 == 1643


def test_families_are_never_mixed(hybrid: Identity, x25519: Identity) -> None:
    with pytest.raises(UsageError) as caught:
        _sealed([hybrid.recipient(), x25519.recipient()])
    assert caught.value.code is ErrorCode.RECIPIENT_INVALID


def test_somebody_must_be_able_to_read_it() -> None:
    with pytest.raises(UsageError):
        _sealed([])


def test_a_passphrase_is_alone(x25519: Identity) -> None:
    passphrase = ScryptRecipient(b"one", work_factor=1)
    for recipients in ([passphrase, passphrase], [passphrase, x25519.recipient()]):
        with pytest.raises(UsageError):
            _sealed(recipients)


def test_passphrases() -> None:
    sealed = _sealed([ScryptRecipient(b"correct horse", work_factor=2)])
    opened = io.BytesIO()
    decrypt(io.BytesIO(sealed), opened, [ScryptIdentity(b"correct horse")])
    assert opened.getvalue() == b"data"
    assert _code(sealed, ScryptIdentity(b"wrong")) is ErrorCode.NO_IDENTITY_MATCH
    assert (
        _code(sealed, ScryptIdentity(b"correct horse", max_work_factor=1))
        is ErrorCode.HEADER_INVALID
    )


def test_passphrases_have_no_public_form() -> None:
    identity = ScryptIdentity(b"hunter2")
    assert "hunter2" not in f"{identity!r}{identity.recipient()}{identity.recipient()!r}"
    assert identity.recipient().recipient_type is RecipientType.SCRYPT


@pytest.mark.parametrize(("passphrase", "work_factor"), [(b"", 10), (b"x", 0), (b"x", 21)])
def test_passphrases_that_do_not_serve(passphrase: bytes, work_factor: int) -> None:
    with pytest.raises(ValueError, match=r"empty|work factor"):
        ScryptRecipient(passphrase, work_factor=work_factor)


def test_headers_are_bounded(hybrid: Identity) -> None:
    line = b"-> X25519 " + b"a" * 50 + b"\n\n"
    endless = b"age-encryption.org/v1\n" + line * (MAX_HEADER_BYTES // len(line) + 1)
    assert _code(endless, hybrid) is ErrorCode.HEADER_INVALID
    assert (
        _code(b"age-encryption.org/v1\n-> " + b"a" * MAX_HEADER_BYTES, hybrid)
        is ErrorCode.HEADER_INVALID
    )


def test_too_many_recipients(hybrid: Identity) -> None:
    with pytest.raises(UsageError, match="too many"):
        _sealed([hybrid.recipient()] * 680)


@given(st.binary(max_size=300))
def test_noise_is_no_header(noise: bytes) -> None:
    identity = identity_from_seed(bytes(32), hybrid=False)
    assert _code(noise, identity) in {ErrorCode.HEADER_INVALID, ErrorCode.ARMOR_INVALID}
    assert _code(b"age-encryption.org/v1\n" + noise, identity) is ErrorCode.HEADER_INVALID


@given(
    type_=st.from_regex(r"[\x21-\x7e]{1,20}", fullmatch=True),
    arguments=st.lists(st.from_regex(r"[\x21-\x7e]{1,90}", fullmatch=True), max_size=3),
    body=st.binary(max_size=200),
)
def test_stanzas_of_unknown_types_are_passed_over(
    type_: str, arguments: list[str], body: bytes
) -> None:
    class Grease:
        recipient_type = RecipientType.X25519

        def wrap(self, file_key: bytes) -> Stanza:
            return Stanza(f"grease-{type_}", tuple(arguments), body)

    identity = identity_from_seed(bytes(32), hybrid=False)
    opened = io.BytesIO()
    decrypt(io.BytesIO(_sealed([Grease(), identity.recipient()])), opened, [identity])
    assert opened.getvalue() == b"data"
