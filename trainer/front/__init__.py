"""The network-facing child process: it serves evidence, receives sealed datasets and delivers sealed results.

It has no private key except that of its own TLS certificate, and sees no plaintext.
"""
