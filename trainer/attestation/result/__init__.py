"""The result of an appraisal: its type, its record on disk, and its forms as EAR, text and HTML."""
