"""The data provider's network: carriers of an exchange, and downloads of collateral and endorsements."""
