"""Estimate of the peak GPU memory of a job, from the model's dimensions and token lengths.

The estimate is the sum of the memory that a training step holds at its peak:

- **weights**: 4, 2 or 2 bytes a parameter in float32, bfloat16 or float16. In 8 bits 1, in 4 bits
  0.5 + 1/64 + 4/16384 for the linear layers (a byte of scale for 64 weights, and a float32 for 256 such bytes:
  double quantisation, Dettmers et al. 2023, QLoRA, section 3); the other parameters keep their type.
- **adapter**: r * (inputs + outputs) parameters for each linear layer it is on, 16 bytes each: value, gradient and
  Adam's two moments, all in float32.
- **activations**: bytes that backward needs, for each token and layer, with hidden width h, intermediate width f,
  query width q and key width k: two norms in float32 8h; a 2-byte copy of the input of each linear layer that has
  an adapter 2 * (5h + q + f); queries, keys, values and attention's output 4q + 4k; gate, its activation and
  up 6f. No score matrix (SDPA, flash attention), no dropout. With gradient checkpointing 2h a layer, and the full
  amount for the one layer that is recomputed. The method is that of Korthikanti et al. 2022, section 4; a test
  counts the bytes that backward holds.
- **logits**: for each trained token and entry of the vocabulary 2 bytes, their float32 copy, its gradient and the
  gradient in bfloat16: 12 bytes.
- **reserve**: 1 GiB for the CUDA context, kernels' workspaces and unusable gaps.

The sum has not been compared with a measurement on a GPU yet: take it as an order of magnitude.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from trainer.model_files.architecture import Architecture
from trainer.spec import Dtype, JobSpec

GIB: Final = 1 << 30
_BYTES: Final[Mapping[Dtype, int]] = {Dtype.FLOAT32: 4, Dtype.BFLOAT16: 2, Dtype.FLOAT16: 2}
_BITS_4: Final = 0.5 + 1 / 64 + 4 / 16384


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes of GPU memory by use."""

    weights: int
    adapter: int
    activations: int
    logits: int
    reserve: int = GIB

    @property
    def total(self) -> int:
        """Sum of all uses."""
        return self.weights + self.adapter + self.activations + self.logits + self.reserve


def estimate_memory(
    model: Architecture, spec: JobSpec, *, tokens: int, trained: int
) -> MemoryEstimate:
    """Estimates the GPU memory of a training step, in bytes.

    Args:
        model: dimensions of the base model.
        spec: the job.
        tokens: tokens of the largest micro-batch, including padding.
        trained: trained tokens among them.
    """
    # Quantisation applies to the linear layers only; embedding, output layer and norms keep `model.dtype`.
    plain = _BYTES[spec.model.dtype]
    linear = _BITS_4 if spec.model.load_in_4bit else 1 if spec.model.load_in_8bit else plain

    # Activations of one token in one layer, in bytes; the module docstring has the formula.
    hidden, inner = model.hidden, model.intermediate
    queries, keys = model.heads * model.head, model.key_value_heads * model.head
    norms, inputs = 8 * hidden, 2 * (5 * hidden + queries + inner)
    layer = norms + inputs + 4 * queries + 4 * keys + 6 * inner
    # With checkpointing each layer keeps its 2-byte input, and one layer at a time is recomputed.
    checkpointing = spec.train.gradient_checkpointing
    activations = model.layers * 2 * hidden + layer if checkpointing else model.layers * layer
    return MemoryEstimate(
        weights=round(linear * model.linear_parameters) + plain * model.other_parameters,
        adapter=16
        * adapter_parameters(model, spec),  # float32: value, gradient, two moments of Adam
        activations=tokens * activations,
        logits=12 * trained * model.vocabulary,
    )


def adapter_parameters(model: Architecture, spec: JobSpec) -> int:
    """Returns the number of trained parameters, with matrices in full; DoRA adds a magnitude for each output."""
    lora, targets = spec.lora, spec.lora.lora_target_modules
    outer = (model.hidden, model.vocabulary)
    shapes = {**model.linears, "embed_tokens": outer, "lm_head": outer}
    counts = {**dict.fromkeys(model.linears, model.layers), "embed_tokens": 1, "lm_head": 1}
    named = set(model.linears) if isinstance(targets, str) else _names_in(targets, shapes)
    total = 0
    for name in named - _names_in(lora.exclude_modules, shapes):
        inputs, outputs = shapes[name]
        total += counts[name] * (
            lora.lora_r * (inputs + outputs) + (outputs if lora.use_dora else 0)
        )
    in_full = _names_in(lora.modules_to_save, {"embed_tokens", "lm_head"})
    return total + model.hidden * model.vocabulary * (
        min(1, len(in_full)) if model.tied else len(in_full)
    )


def _names_in(written: Sequence[str], names: Collection[str]) -> set[str]:
    """Returns the last parts of modules' names that a list of names in section `lora` has."""
    return {
        name for name in names if any(each == name or each.endswith(f".{name}") for each in written)
    }
