"""What both ends of an exchange share: size and time limits, TLS key pinning, and the layout of a spool directory.

The provider's end is `trainer.provider.transport`, the job's end `trainer.front`. This package holds no key and
sees no plaintext.
"""
