"""Checks of the job's claims: what `report_data` binds."""
