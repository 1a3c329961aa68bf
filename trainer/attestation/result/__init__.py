"""The result of an appraisal: its type, its record, and its presentation as EAR, text and HTML."""
