"""The child that sees plaintext: rows in, adapter and report out. No network, no keys it was not handed.

`python -m trainer.worker` reads one order from stdin and reports on a file descriptor; see `protocol`.
"""
