"""The receipt: a signed statement of what was made from what, by which measured job."""

from trainer.receipt.dsse import sign_envelope, verify_envelope
from trainer.receipt.statement import ReceiptOutcome, Statement, make_statement, parse_statement

__all__ = ["ReceiptOutcome", "Statement", "make_statement", "parse_statement", "sign_envelope", "verify_envelope"]
