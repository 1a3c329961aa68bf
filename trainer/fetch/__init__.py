"""The child process that downloads the base model: it has the network, and neither a key nor plaintext.

`python -m trainer.fetch` reads one order and sends one report (`trainer.ipc.fetch_messages`).
`model_listing` asks a hub about a model's files on a user's machine; no job uses it.
"""
