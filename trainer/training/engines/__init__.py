"""Engines that load the base model and attach the adapter; one file each."""
