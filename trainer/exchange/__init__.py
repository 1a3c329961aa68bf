"""The carrier: takes evidence, sealed datasets and sealed results across; knows no secret, sees no plaintext."""
