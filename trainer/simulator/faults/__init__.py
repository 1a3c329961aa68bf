"""The named faults of `trainer simulate --fault NAME`: each changes one field of what the simulated VM shows.

A verifier that accepts a fault is broken. The tests require that each fault fails exactly the checks that it
names.
"""

from __future__ import annotations

from collections.abc import Iterable
from types import MappingProxyType
from typing import Final

from trainer.errors import ErrorCode, UsageError
from trainer.simulator.fault import Fault
from trainer.simulator.faults.app_faults import APP_FAULTS
from trainer.simulator.faults.collateral_faults import COLLATERAL_FAULTS
from trainer.simulator.faults.event_faults import EVENT_FAULTS
from trainer.simulator.faults.quote_faults import QUOTE_FAULTS
from trainer.simulator.faults.td_faults import TD_FAULTS

__all__ = ["FAULTS", "find_faults"]

_ALL: Final = (*QUOTE_FAULTS, *COLLATERAL_FAULTS, *TD_FAULTS, *EVENT_FAULTS, *APP_FAULTS)

FAULTS: Final = MappingProxyType({fault.name: fault for fault in _ALL})
"""Every fault by its name."""


def find_faults(names: Iterable[str]) -> tuple[Fault, ...]:
    """Returns the faults with these names.

    Raises:
        UsageError: no fault has one of the names.
    """
    wanted = tuple(names)
    for name in wanted:
        if name not in FAULTS:
            raise UsageError(
                ErrorCode.USAGE,
                "--fault",
                expected="one of the names that `trainer simulate --list-faults` shows",
                found=name,
            )
    return tuple(FAULTS[name] for name in wanted)
