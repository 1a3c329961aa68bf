"""What the job asks of its machine: keys, quotes, GPU reports. `simulator/` takes its place in development."""
