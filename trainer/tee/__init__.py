"""What the job asks of its machine: keys, quotes, GPU reports. `simulator/` stands in for it in development."""
