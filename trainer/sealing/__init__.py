"""Sealing: the age format, the dataset bundle and its grant, sealed results and sealed checkpoints.

`age/` implements the format; `seal`, `bundle`, `sealed_result` and `sealed_checkpoint` define what is encrypted
with it. Ciphertext may be public. Every function that opens it fails closed: it returns only after the last byte
has authenticated, and leaves nothing on disk otherwise.
"""
