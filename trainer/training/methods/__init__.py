"""Training methods, one file each: a method defines the loss of a step and what the loss is averaged over."""
