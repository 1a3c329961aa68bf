"""The optional fused forward and backward pass for decoder models; nothing outside imports its insides."""
