"""Keys as text."""

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.errors import ErrorCode, UsageError
from trainer.sealing.age import (
    Identity,
    RecipientType,
    generate_identity,
    identity_from_seed,
    parse_identity,
    parse_identity_file,
    parse_recipient,
)
from trainer.sealing.age.bech32 import bech32_decode, bech32_encode


@given(st.binary(max_size=100))
def test_bech32_round_trip(data: bytes) -> None:
    assert bech32_decode("age", bech32_encode("age", data)) == data


@given(
    data=st.binary(min_size=32, max_size=32), position=st.integers(4, 61), step=st.integers(1, 31)
)
def test_bech32_finds_any_changed_character(data: bytes, position: int, step: int) -> None:
    alphabet = "qpzry9x8gf2tvdw0s3jn54khce6mua7l"
    text = bech32_encode("age", data)
    other = alphabet[(alphabet.index(text[position]) + step) % 32]
    with pytest.raises(ValueError, match="checksum"):
        bech32_decode("age", text[:position] + other + text[position + 1 :])


def test_bech32_known_text() -> None:
    # BIP 173, test vectors of valid Bech32 strings
    text = "abcdef1qpzry9x8gf2tvdw0s3jn54khce6mua7lmqqqxw"
    assert bech32_encode("abcdef", bech32_decode("abcdef", text)) == text


def test_bech32_refuses_padding_that_is_not_zero() -> None:
    # 32 values of 5 bits are 20 bytes; one more value carries bits of no byte
    with pytest.raises(ValueError, match="padding"):
        bech32_decode("age", _with_values([1] * 33))


def _with_values(values: list[int]) -> str:
    from trainer.sealing.age import bech32

    checksum = bech32._polymod([*bech32._expand_prefix("age"), *values, *bytes(6)]) ^ 1
    values = values + [checksum >> 5 * (5 - place) & 31 for place in range(6)]
    return "age1" + "".join(bech32._ALPHABET[value] for value in values)


@pytest.mark.parametrize("hybrid", [True, False])
@given(seed=st.binary(min_size=32, max_size=32))
def test_round_trip(hybrid: bool, seed: bytes) -> None:
    identity = identity_from_seed(seed, hybrid=hybrid)
    assert str(parse_identity(str(identity))) == str(identity)
    recipient = identity.recipient()
    assert str(parse_recipient(str(recipient))) == str(recipient)
    assert recipient.recipient_type is (RecipientType.HYBRID if hybrid else RecipientType.X25519)


def test_known_x25519_key() -> None:
    # RFC 7748, section 6.1: Bob's key pair
    identity = identity_from_seed(
        bytes.fromhex("5dab087e624a8a4b79e17f8b83800ee66f3bb1292618b6fd1c2f8b27ff88e0eb"),
        hybrid=False,
    )
    public = bech32_decode("age", str(identity.recipient()))
    assert public.hex() == "de9edb7d7b7dc1b4d35b61c2ece435373f8343c85b78674dadfc7e146f882b4f"


def test_generated_identities_differ() -> None:
    assert str(generate_identity()) != str(generate_identity())
    assert str(generate_identity()).startswith("AGE-SECRET-KEY-PQ-1")
    assert str(generate_identity(hybrid=False)).startswith("AGE-SECRET-KEY-1")


def test_hybrid_recipients_have_the_length_of_the_format(hybrid: Identity) -> None:
    assert len(str(hybrid.recipient())) == 1959


@pytest.mark.parametrize(
    "damage", [str.lower, lambda text: text[:-1], lambda text: text[:30] + "B" + text[31:]]
)
def test_damaged_identities_are_refused_without_quoting_them(
    hybrid: Identity, damage: Callable[[str], str]
) -> None:
    text = damage(str(hybrid))
    with pytest.raises(UsageError) as caught:
        parse_identity(text)
    assert caught.value.code is ErrorCode.IDENTITY_INVALID
    assert not any(
        text[start : start + 8].lower() in str(caught.value).lower() for start in range(19, 60)
    )


@pytest.mark.parametrize(
    "text",
    [
        "",
        "age1",
        "age1pq1",
        "AGE1ABC",
        "age1pq1qqqq",
        "ssh-ed25519 AAAA",
        "age1" + "q" * 58,
        "âge1q",
    ],
)
def test_what_is_no_recipient(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_recipient(text)
    assert caught.value.code is ErrorCode.RECIPIENT_INVALID


def test_upper_case_recipients_are_refused(x25519: Identity) -> None:
    with pytest.raises(UsageError):
        parse_recipient(str(x25519.recipient()).upper())


@pytest.mark.parametrize("point", [bytes(32), (1).to_bytes(32, "little")])
def test_low_order_points_are_no_recipients(point: bytes, hybrid: Identity) -> None:
    with pytest.raises(UsageError, match="low order"):
        parse_recipient(bech32_encode("age", point))
    raw = bech32_decode("age1pq", str(hybrid.recipient()))
    with pytest.raises(UsageError, match="low order"):
        parse_recipient(bech32_encode("age1pq", raw[:1184] + point))


def test_unreduced_mlkem_keys_are_no_recipients(hybrid: Identity) -> None:
    raw = bech32_decode("age1pq", str(hybrid.recipient()))
    with pytest.raises(UsageError, match="ML-KEM"):
        parse_recipient(bech32_encode("age1pq", b"\xff" * 1184 + raw[1184:]))


def test_an_identity_given_as_recipient_is_pointed_out(x25519: Identity) -> None:
    with pytest.raises(UsageError) as caught:
        parse_recipient(str(x25519))
    assert "secret" in (caught.value.hint or "")
    assert str(x25519) not in str(caught.value) + (caught.value.hint or "")


def test_identity_file(hybrid: Identity, x25519: Identity) -> None:
    text = f"# created: today\n# public key: {x25519.recipient()}\n\n{x25519}\r\n{hybrid}"
    assert [str(identity) for identity in parse_identity_file(text)] == [str(x25519), str(hybrid)]


def test_identity_file_names_the_line(x25519: Identity) -> None:
    with pytest.raises(UsageError, match="line 3"):
        parse_identity_file(f"# comment\n{x25519}\nAGE-SECRET-KEY-1QQQ\n")
    with pytest.raises(UsageError, match="no identity"):
        parse_identity_file("# nothing here\n\n")


def test_seeds_have_32_bytes() -> None:
    for hybrid in (True, False):
        with pytest.raises(ValueError, match="32"):
            identity_from_seed(bytes(31), hybrid=hybrid)


def test_repr_gives_no_secret_away(hybrid: Identity, x25519: Identity) -> None:
    for identity in (hybrid, x25519):
        assert str(identity)[:25] not in repr(identity)
        assert len(repr(identity)) < 32
