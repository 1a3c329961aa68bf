"""The job's claims: how `report_data` binds them to a quote, and their checks."""
