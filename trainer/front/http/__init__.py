"""The front's HTTP server. It imports no module that handles private keys or plaintext."""
