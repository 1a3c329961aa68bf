"""A stand-in for dstack's guest agent, for machines without TDX; it signs for real, under a root nobody trusts.

Nothing here is imported by the job or by appraisal: evidence made here passes through the same checks as
evidence made by Intel hardware and fails them, unless a policy names the development root it was made under.
"""

from trainer.simulator.agent import BANNER, SimulatedVm, VmOptions
from trainer.simulator.faults import FAULTS, find_faults
from trainer.simulator.server import serve

__all__ = ["BANNER", "FAULTS", "SimulatedVm", "VmOptions", "find_faults", "serve"]
