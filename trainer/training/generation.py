"""Greedy generation of many answers at once, which leaves the model as it was."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from trainer.data.examples.model_tokenizer import ModelTokenizer
from trainer.training.engines.base import Precision


@torch.no_grad()
def generate_answers(
    model: Any,
    tokens: ModelTokenizer,
    precision: Precision,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
) -> list[list[int]]:
    """Continues prompts by greedy decoding, all of them in one batch.

    Args:
        model: PEFT model of a causal language model.
        tokens: its tokenizer.
        precision: its device and number formats.
        prompts: token ids of each prompt; at least one prompt.
        max_new_tokens: length of an answer at most.

    Returns:
        The new token ids of each prompt, up to the first stop token, which is the last one then.
    """
    ids, mask = pad_left(prompts, tokens.pad_id, precision.device)
    # A compiled model runs uncompiled here: with each new token the cached keys have another shape.
    with _greedy(model), precision.context(), torch.compiler.set_stance("force_eager"):
        generated = model.generate(
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=max_new_tokens,
            do_sample=False,
            use_cache=True,
            pad_token_id=tokens.pad_id,
            eos_token_id=sorted(tokens.stop_ids) or None,
        )
    answers = []
    for row in generated[:, ids.shape[1] :].tolist():
        # Generation goes on until every row has a stop token: what follows in this one is padding.
        stop = next((at for at, id_ in enumerate(row) if id_ in tokens.stop_ids), len(row))
        answers.append(row[: stop + 1])
    return answers


@contextmanager
def _greedy(model: Any) -> Iterator[None]:
    """Has the model evaluate, and decode without what its own generation configuration adds, within the block.

    With a penalty on repetitions, for example, an answer is not the likeliest continuation step by step.
    """
    from transformers import GenerationConfig  # noqa: PLC0415 -- after the choice of the engine

    causal, was_training = model.get_base_model(), model.training
    own, causal.generation_config = causal.generation_config, GenerationConfig()  # type: ignore[no-untyped-call]
    # unsloth's `generate` switches checkpointing off, and on again only in a model that was training.
    switches = [
        (each, each.gradient_checkpointing)
        for each in model.modules()
        if "gradient_checkpointing" in vars(each)
    ]
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)
        for module, checkpointing in switches:
            module.gradient_checkpointing = checkpointing
        causal.generation_config = own


def pad_left(
    prompts: Sequence[Sequence[int]], pad_id: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Pads prompts on the left, so that all end where generation begins.

    Returns:
        Ids and attention mask: int64 [prompts, longest prompt] each.
    """
    # The model predicts after the last column, which must therefore hold the last token of every prompt.
    width = max(len(prompt) for prompt in prompts)
    ids = torch.full((len(prompts), width), pad_id, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt) :] = torch.tensor(prompt, dtype=torch.int64)
        mask[row, width - len(prompt) :] = 1
    return ids.to(device), mask.to(device)
