"""A simulator of dstack's guest agent for machines without TDX; it signs under a development root.

Neither the job nor appraisal imports this package, and the container image does not contain it. Evidence of the
simulator goes through the same checks as evidence of Intel hardware. It fails them unless a policy names the
development root that signed it.
"""

from trainer.simulator.agent import BANNER, SimulatedVm, VmOptions
from trainer.simulator.faults import FAULTS, find_faults
from trainer.simulator.server import serve

__all__ = ["BANNER", "FAULTS", "SimulatedVm", "VmOptions", "find_faults", "serve"]
