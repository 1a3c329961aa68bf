"""The worker on a pretended GPU: `python -m tests.unsloth.pretended_worker`, with `trainer.worker`'s arguments."""

from __future__ import annotations

import sys

from tests.unsloth import pretended_gpu

pretended_gpu.install()

from trainer.worker import environment  # noqa: E402
from trainer.worker.__main__ import main  # noqa: E402

if __name__ == "__main__":
    # The worker replaces its environment; what the pretended GPU needs is added to what it sets.
    environment.QUIET = {**environment.QUIET, **pretended_gpu.VARIABLES}  # type: ignore[misc]
    sys.exit(main(sys.argv[1:]))
