"""Writes what of a checked result may be shown to everyone, in the forms that stock tools read."""

from __future__ import annotations

from pathlib import Path

from trainer.encoding import canonical_json
from trainer.provider.receipt_verification import VerifiedReceipt
from trainer.receipt.attested_envelope import parse_attested_envelope
from trainer.receipt.dsse import load_public_key
from trainer.receipt.model_signature import MODEL_SIGNATURE, public_key_pem
from trainer.receipt.public_provenance import PUBLIC_PROVENANCE


def export_public(verified: VerifiedReceipt, output: Path) -> tuple[Path, ...]:
    """Writes the files into the new directory `output`; returns their paths.

    - `provenance.intoto.jsonl`: the DSSE envelope of the public provenance
    - `evidence.json`: the quote over it, and over the key that signed it
    - `receipt-key.pem`: that key
    - `model.sig`: the signature over the adapter, by the same key
    """
    folder = verified.opened.folder
    attested = parse_attested_envelope(
        (folder / PUBLIC_PROVENANCE).read_bytes(), what="public provenance"
    )
    key = load_public_key(bytes.fromhex(attested.evidence.claims.receipt_key))
    files = {
        "provenance.intoto.jsonl": canonical_json(attested.envelope.model_dump(mode="json"))
        + b"\n",
        "evidence.json": attested.evidence.canonical(),
        "receipt-key.pem": public_key_pem(key),
        MODEL_SIGNATURE: (folder / MODEL_SIGNATURE).read_bytes(),
    }
    output.mkdir()
    for name, content in files.items():
        (output / name).write_bytes(content)
    return tuple(output / name for name in files)
