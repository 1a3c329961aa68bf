"""`trainer validate`: what the job will make of a dataset, on the provider's machine without torch and GPU."""
