"""The data provider's network access: the carriers of an exchange, and downloads of collateral and endorsements.

A carrier is one module: it implements the protocol `Carrier` of `carrier.py` and describes itself as a
`CarrierKind`, which `carrier_registry.py` lists. No module of this package sees plaintext or
holds a key of the provider.
"""
