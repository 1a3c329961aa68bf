"""The training library: from parsed rows and a base model to a LoRA adapter and a report."""
