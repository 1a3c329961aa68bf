"""Checks of the TDX quote and of the collateral that it is verified with."""
