"""Keccak-256 beside two implementations of others."""

from __future__ import annotations

import hashlib

import pytest
from Crypto.Hash import keccak
from hypothesis import given
from hypothesis import strategies as st

from trainer.attestation.dstack.keccak import RATE_BYTES, keccak256

EMPTY = "c5d2460186f7233c927e7db2dcc703c0e500b653ca82273b7bfad8045d85a470"
"""Ethereum's hash of nothing, as its yellow paper has it for accounts without code."""

SIZES = [0, 1, 7, 8, 31, RATE_BYTES - 1, RATE_BYTES, RATE_BYTES + 1, 3 * RATE_BYTES - 1, 1000]


def test_the_digest_of_nothing_is_the_published_one() -> None:
    assert keccak256(b"").hex() == EMPTY


@pytest.mark.parametrize("size", SIZES)
def test_it_is_that_of_the_package(size: int) -> None:
    data = bytes(number % 251 for number in range(size))
    assert keccak256(data) == keccak.new(digest_bits=256, data=data).digest()


@given(st.binary(max_size=300))
def test_with_the_padding_of_the_standard_it_is_sha3(data: bytes) -> None:
    assert keccak256(data, padding=6) == hashlib.sha3_256(data).digest()
