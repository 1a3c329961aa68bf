"""Certificates of a stranger, read before anything is verified: whatever is wrong with them is a ValueError."""

from __future__ import annotations

import base64
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from trainer.attestation.tdx.pem_chain import read_pem_chain

World = Any  # conftest.World

EC_KEY = bytes.fromhex("2a8648ce3d0201")
"""DER content of the object identifier id-ecPublicKey."""
V3 = bytes.fromhex("a003020102")
"""DER of a certificate's version."""


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (EC_KEY, bytes.fromhex("2a8648ce3d0701")),  # an algorithm that does not exist
        (V3, bytes.fromhex("a003020107")),  # a version that does not exist
    ],
)
def test_a_root_that_cannot_be_read(world: World, old: bytes, new: bytes) -> None:
    der = world.vm.pki.root_der
    assert der.count(old) == 1
    honest = x509.load_der_x509_certificate(der).public_bytes(Encoding.PEM)
    assert len(read_pem_chain(honest).roots) == 1
    with pytest.raises(ValueError, match=r"cannot be read: (UnsupportedAlgorithm|InvalidVersion)"):
        read_pem_chain(pem(der.replace(old, new)))


def pem(der: bytes) -> bytes:
    return (
        b"-----BEGIN CERTIFICATE-----\n" + base64.encodebytes(der) + b"-----END CERTIFICATE-----\n"
    )
