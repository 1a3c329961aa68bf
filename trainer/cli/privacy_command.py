"""The `privacy` command: check what was handed on of a private result, without the receipt."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from trainer.cli.console import print_summary
from trainer.cli.options import Json, RecordFile


def show_privacy(
    folder: Annotated[
        Path,
        typer.Argument(metavar="DIR", help="Directory with privacy.json, adapter/ and, if there is one, merged/."),
    ],
    attestation: RecordFile,
    as_json: Json = False,
) -> None:
    """Check the signed statement of how private some weights are. Needs no key, no receipt and no network."""
    from trainer import provider

    statement = provider.verify_handed_on(folder, provider.read_record(attestation))
    predicate = statement.predicate
    print_summary(
        {
            "privacy": f"ε ≤ {predicate.epsilon:g} at δ = {predicate.delta:g} for each row",
            "runs": predicate.runs,
            "weights": sorted(statement.files),
            "statement": predicate.model_dump(mode="json"),
        },
        as_json=as_json,
        show=("privacy", "runs", "weights"),
    )
