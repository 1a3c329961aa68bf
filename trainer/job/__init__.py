"""The supervisor: it runs one job from its spec to the sealed result, with the keys and without a network.

It starts the front, the fetch process and the worker, talks to the guest agent, and opens no network socket. The
front transports ciphertext over the network; the worker sees plaintext and has no network. Both talk to the
supervisor over inherited descriptors, in typed messages of limited size.
"""
