"""`trainer validate`: reads a dataset as the job will, on the provider's machine, without torch and GPU."""
