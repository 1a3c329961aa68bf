"""The sync process: the child process that carries the files of a spool to an object store and back.

It sees ciphertext and public documents, has the store's credentials, and neither keys nor plaintext.
"""
