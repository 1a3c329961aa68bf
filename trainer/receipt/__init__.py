"""The receipt: a signed in-toto statement of which files a measured job made from which inputs."""

from trainer.receipt.dsse import sign_envelope, verify_envelope
from trainer.receipt.statement import ReceiptOutcome, Statement, parse_statement
from trainer.receipt.statement_writer import make_statement

__all__ = [
    "ReceiptOutcome",
    "Statement",
    "make_statement",
    "parse_statement",
    "sign_envelope",
    "verify_envelope",
]
