"""Training methods, one file each: a method defines the loss of a step and its denominator."""
