"""Runs workers in forks of one process that has imported the training stack already.

A worker spends some five seconds of processor time on imports; a test that looks at what it trained needs none of
them again. Each worker still is a process of its own: descriptors, directory, environment, sandbox and exit code.
"""

from __future__ import annotations

import json
import os
import socket
import sys

MAX_REQUEST_BYTES = 1 << 16


def import_stack() -> None:
    """Imports what a worker imports before it trains; leaves no thread behind that a fork would lose."""
    import peft  # noqa: F401
    from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast  # noqa: F401

    import trainer.training.run
    import trainer.worker.__main__  # noqa: F401

    assert len(os.listdir("/proc/self/task")) == 1  # noqa: PTH208


def carry_out(request: bytes, descriptors: list[int]) -> int:
    """Is the worker from here on; returns its exit code.

    Args:
        request: JSON object with `arguments` and `environment`.
        descriptors: stdin, stdout, stderr, and where messages go.
    """
    for number, descriptor in enumerate(descriptors[:3]):
        os.dup2(descriptor, number)
        os.close(descriptor)
    wanted = json.loads(request)
    os.environ.clear()
    os.environ.update(wanted["environment"])
    from trainer.worker.__main__ import main

    return int(main(["--events-fd", str(descriptors[3]), *wanted["arguments"]]))


def serve(requests: socket.socket) -> None:
    """Forks a worker for each request and answers with its process id, then with its exit code.

    Ends when the other end closes.
    """
    while True:
        request, descriptors, _, _ = socket.recv_fds(requests, MAX_REQUEST_BYTES, 4)
        if not request:
            return
        pid = os.fork()
        if pid == 0:
            requests.close()
            sys.exit(carry_out(request, descriptors))
        for descriptor in descriptors:
            os.close(descriptor)
        requests.send(str(pid).encode())
        _, status = os.waitpid(pid, 0)
        requests.send(str(os.waitstatus_to_exitcode(status)).encode())


if __name__ == "__main__":
    import_stack()
    with socket.socket(fileno=int(sys.argv[1])) as connection:
        serve(connection)
