"""Maps each name in `train.method` to the class of its training method."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from trainer.spec import MethodName
from trainer.training.methods.dpo import DirectPreferenceOptimization
from trainer.training.methods.kto import KahnemanTverskyOptimization
from trainer.training.methods.method import Method
from trainer.training.methods.orpo import OddsRatioPreferenceOptimization
from trainer.training.methods.sft import SupervisedFineTuning

METHODS: Final[Mapping[MethodName, type[Method]]] = {
    method.name: method
    for method in (
        SupervisedFineTuning,
        DirectPreferenceOptimization,
        OddsRatioPreferenceOptimization,
        KahnemanTverskyOptimization,
    )
}
"""Has exactly the names of `trainer.spec.training_methods`."""
