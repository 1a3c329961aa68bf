"""The child process that brings the base model: it has a network, and neither keys nor plaintext."""
