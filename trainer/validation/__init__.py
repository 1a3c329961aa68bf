"""What a dataset will be in the job: told on the provider's machine, without torch and without a GPU."""
