"""Sealing: the age format, the dataset bundle and its grant, the sealed result.

`age/` is the format; `seal`, `bundle` and `result` say what travels in it. Ciphertext may be shown to anyone;
everything that opens it fails closed: whoever gets a value back got all of it, authenticated to the last byte.
"""
