"""The report on a run: its summary, charts, samples and model card."""
