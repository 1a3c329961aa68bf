"""The stages of a training run: prepare the data, load the model, train, write the result."""
