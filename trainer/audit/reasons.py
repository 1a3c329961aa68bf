"""Why a deviation from the shipped shape matters: for well-known dangers in plain words, for the rest in general.

Nothing here decides what is refused. `shape` does; a danger that is not listed is refused with the last reason.
"""

from __future__ import annotations

import re
from typing import Final

from trainer.audit.app_reasons import APP_REASONS
from trainer.audit.compose_reasons import COMPOSE_REASONS, SERVICE_REASONS
from trainer.audit.document import EMBEDDED, SERVICE
from trainer.audit.reason import Reason
from trainer.audit.shape import Deviation

_OTHER: Final = Reason(
    "shape", "", "nobody has reviewed or tested a deployment with it; what it changes is not known"
)


def reason_for(deviation: Deviation) -> Reason:
    """Returns the first reason that fits a deviation."""
    table, below = APP_REASONS, deviation.place
    if deviation.place.startswith(f"{SERVICE}."):
        table, below = SERVICE_REASONS, deviation.place.removeprefix(f"{SERVICE}.")
    elif deviation.place.startswith(f"{EMBEDDED}."):
        table, below = COMPOSE_REASONS, deviation.place.removeprefix(f"{EMBEDDED}.")
    key = re.split(r"[.\[]", below, maxsplit=1)[0]
    return next(
        (
            reason
            for reason in table
            if (not reason.keys or key in reason.keys.split()) and reason.holds(deviation)
        ),
        _OTHER,
    )
