"""Checks of GPU evidence: what the OS measured at boot, and fresh SPDM reports."""
