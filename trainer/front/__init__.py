"""The network-facing child process: it carries evidence, sealed datasets and sealed results, and has no key."""
