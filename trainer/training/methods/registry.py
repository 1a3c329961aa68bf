"""The training methods that there are, by their names in `train.method`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from trainer.spec import MethodName
from trainer.training.methods.dpo import DirectPreferenceOptimization
from trainer.training.methods.method import Method
from trainer.training.methods.orpo import OddsRatioPreferenceOptimization
from trainer.training.methods.sft import SupervisedFineTuning

METHODS: Final[Mapping[MethodName, type[Method]]] = {
    method.name: method
    for method in (SupervisedFineTuning, DirectPreferenceOptimization, OddsRatioPreferenceOptimization)
}
"""Every name of `trainer.spec.training_methods`, and no other."""
