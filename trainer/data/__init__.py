"""A dataset, from the provider's files to token ids: `rows` reads and classifies, `examples` renders and masks."""
