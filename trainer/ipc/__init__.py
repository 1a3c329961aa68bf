"""What the supervisor and its child processes say to each other: typed messages with a size cap, one a line."""
