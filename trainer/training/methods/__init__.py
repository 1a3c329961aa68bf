"""Training methods, one file each: what the loss of a step is, and what it is averaged over."""
