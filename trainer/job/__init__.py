"""The supervisor's hands: its workspace, the front and worker processes, and the result it signs and seals.

The supervisor holds the keys and talks to the guest agent; it opens no network socket. The front carries
ciphertext over the network; the worker sees plaintext and has no network. They talk to the supervisor over
inherited descriptors, in small typed messages with a size cap.
"""
