"""The optional fast forward and backward pass: it computes only what training an adapter needs.

Compared with a model's own pass it
- takes rows without padding, and computes a prefix that rows have in common once (on a CPU);
- multiplies q, k and v (and gate and up) with their LoRA updates as one matrix product;
- computes no gradient of frozen weights, and keeps few activations;
- runs the second half of the last layer, and the head, only where a trained token is predicted;
- computes the logits in blocks, and their gradient at the same time.

It knows decoders of the Llama family. `try_fused` looks at a model's parts, compares loss and gradients with those
of the model's own pass within a tolerance, and returns None where anything differs.

Reading order: `decoder` (the layers), `blocks` and `lora_linear` (their products and gradients), `attention`,
`attention_layout` and `attention_cpu`, `head_loss`, `prefix_sharing`, `equivalence`.
"""

from trainer.training.fused.fused_pass import FusedPass, try_fused

__all__ = ["FusedPass", "try_fused"]
