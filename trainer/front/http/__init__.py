"""The front's HTTP server: what strangers can reach. Imports nothing that knows a key or plaintext."""
