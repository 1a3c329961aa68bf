"""Entry point of `trainer` and `python -m trainer`: ends the process with the command's exit code."""

from __future__ import annotations

import sys


def main() -> None:
    """Runs the command line and ends the process with its exit code."""
    from trainer.job.secret_pipe import is_job

    if is_job():
        from trainer.job.hub_token import hide_hub_token
        from trainer.job.store_variables import hide_store_variables

        hide_store_variables()
        hide_hub_token()  # starts this program again: before anything else is imported
    from trainer.cli.app import run_command_line

    sys.exit(run_command_line(sys.argv[1:]))


if __name__ == "__main__":
    main()
