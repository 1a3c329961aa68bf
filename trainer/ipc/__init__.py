"""The control channels between the supervisor and its child processes: typed messages with a size limit.

`channel` frames, limits and parses; `front_messages`, `worker_messages` and `fetch_messages` declare which
messages each child sends and receives, and how long they may be.
"""
