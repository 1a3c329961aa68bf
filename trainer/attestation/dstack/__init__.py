"""Checks of the dstack layer: event log, compose text, OS image and key provider."""
