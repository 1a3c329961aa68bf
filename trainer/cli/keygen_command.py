"""`keygen`: the data provider's identity."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from trainer.cli.console import print_json, print_line
from trainer.cli.options import Json, ask_passphrase, require_absent
from trainer.errors import ErrorCode, UsageError


def generate_key(
    output: Annotated[
        Path, typer.Option("--output", "-o", help="File for the identity; never overwritten.")
    ],
    x25519: Annotated[
        bool, typer.Option("--x25519", help="Without post-quantum protection, for old age tools.")
    ] = False,
    passphrase: Annotated[
        bool,
        typer.Option(
            "--passphrase",
            help="Encrypt the file with a passphrase, which each use of it asks for.",
        ),
    ] = False,
    as_json: Json = False,
) -> None:
    """Make your identity: the key that results are encrypted to, and the provider key that signs what you send.

    Prints the recipient on stdout and the public provider key on stderr: the public halves. Keep a copy of the
    file in a safe place: without it nobody can open what is sealed to it.
    """
    from trainer.provider import create_identity

    require_absent(output)
    made = create_identity(
        output, hybrid=not x25519, passphrase=_new_passphrase() if passphrase else None
    )
    recipient, public = (
        str(made.identities[0].recipient()),
        made.provider_key.public if made.provider_key else None,
    )
    if as_json:
        print_json({"identity": str(output), "recipient": recipient, "provider_key": public})
        return
    print_line("recipient, which results are encrypted to:", err=True)
    print_line(recipient)
    print_line(f"provider key, for exchange.providers of a job spec:\n{public}", err=True)
    print_line(
        f"Keep a copy of {output} in a safe place: without it no result of yours can be opened.",
        err=True,
    )


def _new_passphrase() -> bytes:
    passphrase = ask_passphrase("new passphrase")
    if passphrase != ask_passphrase("the same passphrase again"):
        raise UsageError(
            ErrorCode.USAGE, "the two passphrases", expected="the same", found="different ones"
        )
    return passphrase
