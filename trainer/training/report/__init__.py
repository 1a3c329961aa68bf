"""The report on a run: its summary, charts, samples and model card. All of it is private."""
