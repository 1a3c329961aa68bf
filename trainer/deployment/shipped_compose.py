"""The shipped compose file, without a job spec: the origin of those in `configs/`, and the shape of an audit.

It is the one with a GPU. The one without leaves out `deploy` and has a smaller workspace.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

SHIPPED_COMPOSE: Final = Path(__file__).with_name("docker-compose.yaml").read_text("utf-8")
"""Text of the compose file; `render_compose` puts a job spec in."""
