"""A fast forward pass for decoders of the Llama family (Llama, Mistral, Qwen 2 and 3, SmolLM2, ...).

It computes what the model itself computes, with the model's own weights: without padding, with grouped matrix
products, and with the second half of the last layer only where a trained token is predicted.

`find_obstacle` looks at a model's parts and names the first that is not exactly of the known kind. Whether the
result is right is then compared on tokens, by `equivalence`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from trainer.training.fused.attention import attend
from trainer.training.fused.attention_layout import Heads, RotaryTables
from trainer.training.fused.blocks import GatedMlp, NormLinear, ResidualLinear, RmsNorm
from trainer.training.fused.lora_linear import AdapterRefresh, LoraGroup, LoraUpdate
from trainer.training.fused.prefix_sharing import FlatBatch
from trainer.training.fused.segments import Segments

MODEL_TYPES: Final = ("llama", "mistral", "qwen2", "qwen3")
"""`model_type`s whose results were compared with those of transformers' own forward pass."""

_ATTENTION_IMPLEMENTATIONS: Final = ("sdpa", "flash_attention_2", "flash_attention_3")

# transformers' names of the modules in a model, a layer, an attention and an MLP of the family.
_MODEL_PARTS: Final = {"embed_tokens", "layers", "norm", "rotary_emb"}
_LAYER_PARTS: Final = {"self_attn", "mlp", "input_layernorm", "post_attention_layernorm"}
_ATTENTION_PARTS: Final = {"q_proj", "k_proj", "v_proj", "o_proj"}
_HEAD_NORMS: Final = {"q_norm", "k_norm"}
_MLP_PARTS: Final = {"gate_proj", "up_proj", "down_proj", "act_fn"}
_QKV: Final = ("q_proj", "k_proj", "v_proj")
_GATE_UP: Final = ("gate_proj", "up_proj")


@dataclass(frozen=True)
class _DecoderLayer:
    """The weights of one layer. `head_norms` normalize queries and keys (Qwen 3); None where there are none."""

    heads: Heads
    attention_norm: RmsNorm
    qkv: LoraGroup
    head_norms: tuple[nn.Module, nn.Module] | None
    attention_output: LoraGroup
    mlp_norm: RmsNorm
    gate_up: LoraGroup
    down: LoraGroup


class FusedDecoder:
    """The forward pass of one model up to its last hidden states.

    Args:
        causal: transformers' causal language model, with PEFT's layers in it.
        dtype: number format of matrix products.
        checkpointing: whether a layer's activations are recomputed in the backward pass instead of being kept.

    Attributes:
        dtype: as given.
        head: weight of the head, [vocabulary, hidden size], in `dtype`.
        head_bias: [vocabulary], or None.
        row_lengths: [tokens, 1]: length of the row that each token of the present batch is in. Set before the
            embedding is computed, whose noise depends on it; not set where rows share a prefix.
        adapted: whether the adapter takes part; without it this is the base model.
    """

    def __init__(self, causal: Any, dtype: torch.dtype, *, checkpointing: bool) -> None:
        model = causal.base_model
        head = causal.get_output_embeddings()
        # Weights that no group copies: a single view of the memory-mapped file would keep all of it in memory.
        norms = [module for module in model.modules() if hasattr(module, "variance_epsilon")]
        modules = [causal.get_input_embeddings(), head, *norms]
        # A set, because embedding and head may share one parameter.
        for parameter in {parameter for module in modules for parameter in module.parameters()}:
            if parameter.device.type == "cpu":
                parameter.data = parameter.data.clone()
        self.dtype = dtype
        self.head = head.weight.detach().to(dtype)
        self.head_bias = None if head.bias is None else head.bias.detach().to(dtype)
        self.row_lengths = torch.empty(0)
        self.adapted = True
        self._model = model
        self._checkpointing = checkpointing
        self._layers = [_build_layer(layer, read_heads(causal), dtype) for layer in model.layers]
        self._refresh_adapter = AdapterRefresh(
            [
                group
                for layer in self._layers
                for group in (layer.qkv, layer.attention_output, layer.gate_up, layer.down)
            ]
        )

    def hidden_states(self, batch: FlatBatch) -> Tensor:
        """Computes the hidden states after the final norm, at the logit positions: [targets, hidden size]."""
        # The optimizer has changed A and B since the last pass; their copies must follow before any product.
        self._refresh_adapter(disabled=not self.adapted)
        cu_seqlens = batch.segments.cu_seqlens
        if cu_seqlens is not None:
            lengths = cu_seqlens.diff()
            row_lengths = torch.repeat_interleave(
                lengths, lengths, output_size=len(batch.input_ids)
            )
            self.row_lengths = row_lengths.unsqueeze(1)
        x = self._model.embed_tokens(batch.input_ids)
        # transformers repeats the angles for both halves of a head; here one half is enough.
        cos, sin = self._model.rotary_emb(x, batch.position_ids.unsqueeze(0))
        half = cos.shape[-1] // 2
        cos, sin = (table[0, :, None, :half].to(self.dtype) for table in (cos, sin))
        tables: RotaryTables = (cos, sin)
        # [tokens, hidden size] from layer to layer; [targets, hidden size] after the last one.
        for layer in self._layers:
            selected = batch.logit_positions if layer is self._layers[-1] else None
            # Without gradients there is no backward pass to recompute for.
            if self._checkpointing and torch.is_grad_enabled():
                x = checkpoint(
                    self._run_layer, layer, x, tables, batch.segments, selected, use_reentrant=False
                )
            else:
                x = self._run_layer(layer, x, tables, batch.segments, selected)
        normalized: Tensor = self._model.norm(x)
        return normalized

    def _run_layer(
        self,
        layer: _DecoderLayer,
        x: Tensor,
        tables: RotaryTables,
        segments: Segments,
        selected: Tensor | None,
    ) -> Tensor:
        """Runs one layer on x [tokens, hidden size]; in the last one, `selected` are the tokens that go on."""
        training, heads = self._model.training, layer.heads
        qkv = NormLinear.apply(x, layer.attention_norm, layer.qkv, training, *layer.qkv.parameters)  # type: ignore[no-untyped-call]
        # [tokens, all outputs] -> [tokens, query + 2 key heads, head_dim]: a view.
        qkv = qkv.unflatten(1, (heads.total, heads.head_dim))
        if layer.head_norms is not None:
            # Qwen 3 normalizes each head's query and key before the rotation.
            query_norm, key_norm = layer.head_norms
            query, key, value = torch.split(qkv, [heads.query, heads.key, heads.key], dim=1)
            qkv = torch.cat([query_norm(query), key_norm(key), value], dim=1)
        attended = attend(qkv, heads, segments, tables)
        if selected is not None:
            # After the last attention a token depends on itself alone: the rest is needed for trained tokens only.
            x, attended = x.index_select(0, selected), attended.index_select(0, selected)
        output = layer.attention_output
        x = ResidualLinear.apply(x, attended, output, training, *output.parameters)  # type: ignore[no-untyped-call]
        parameters = (*layer.gate_up.parameters, *layer.down.parameters)
        result: Tensor = GatedMlp.apply(
            x, layer.mlp_norm, layer.gate_up, layer.down, training, *parameters
        )  # type: ignore[no-untyped-call]
        return result


def find_obstacle(
    causal: Any, dtype: torch.dtype, device: torch.device, *, longest: int
) -> str | None:
    """Names what keeps a model from the fused pass; None where nothing does.

    Args:
        causal: transformers' causal language model, with PEFT's layers in it.
        dtype: number format of matrix products.
        device: where they are computed.
        longest: tokens of the longest row there will be.
    """
    # A closed list of what is known: anything else, known or not to be harmless, takes the model's own pass.
    config = causal.config
    # Qwen 2 has a window in its configuration even where it is off.
    window = (
        getattr(config, "sliding_window", None)
        if getattr(config, "use_sliding_window", True)
        else None
    )
    attention = config._attn_implementation  # noqa: SLF001
    head, embedding = causal.get_output_embeddings(), causal.get_input_embeddings()
    obstacles = {
        "another kind of model": config.model_type not in MODEL_TYPES,
        "another attention implementation": attention not in _ATTENTION_IMPLEMENTATIONS,
        "float32 on a GPU": device.type != "cpu" and dtype == torch.float32,
        "a sliding window": window is not None and longest > window,
        "attention dropout": bool(getattr(config, "attention_dropout", 0.0)),
        "other parts than a Llama's": set(dict(causal.base_model.named_children())) != _MODEL_PARTS,
        "another head": type(head) is not nn.Linear,
        "a trained head or embedding": _is_trained(head, embedding),
    }
    obstacle = next((text for text, applies in obstacles.items() if applies), None)
    return obstacle or next(
        (text for layer in causal.base_model.layers if (text := _find_obstacle_in_layer(layer))),
        None,
    )


def _find_obstacle_in_layer(layer: Any) -> str | None:
    if set(dict(layer.named_children())) != _LAYER_PARTS:
        return "other layers than a Llama's"
    attention, mlp = dict(layer.self_attn.named_children()), dict(layer.mlp.named_children())
    norms = (layer.input_layernorm, layer.post_attention_layernorm)
    if (
        set(attention) not in (_ATTENTION_PARTS, _ATTENTION_PARTS | _HEAD_NORMS)
        or set(mlp) != _MLP_PARTS
    ):
        return "another attention or MLP"
    if type(mlp["act_fn"]).__name__ not in ("SiLU", "SiLUActivation"):
        return "another activation"
    # A bias would be another formula; so would Gemma's 1 + weight, whose norm has no `variance_epsilon`.
    if any(
        not hasattr(norm, "variance_epsilon") or set(dict(norm.named_parameters())) != {"weight"}
        for norm in norms
    ):
        return "another norm"
    if _is_trained(*norms):
        return "a trained norm"
    groups = [[attention[name] for name in names] for names in (_QKV, ("o_proj",))]
    groups += [[mlp[name] for name in names] for names in (_GATE_UP, ("down_proj",))]
    return next((text for group in groups if (text := _find_obstacle_in_group(group))), None)


def _find_obstacle_in_group(modules: list[Any]) -> str | None:
    bases = [_base_layer(module) for module in modules]
    if any(type(base) is not nn.Linear for base in bases):
        return "linear layers of another kind"
    if len({base.bias is None for base in bases}) > 1:
        return "a bias on some layers only"
    if not all(_is_plain_lora(module) for module in modules):
        return "an adapter of another kind than plain LoRA"
    return "a trained base" if _is_trained(*bases) else None


def _is_trained(*modules: nn.Module) -> bool:
    return any(parameter.requires_grad for module in modules for parameter in module.parameters())


def read_heads(causal: Any) -> Heads:
    """Reads from a model's first layer how its attention is divided into heads."""
    attention = causal.base_model.layers[0].self_attn
    query, key = (
        _base_layer(module).out_features // attention.head_dim
        for module in (attention.q_proj, attention.k_proj)
    )
    return Heads(query, key, attention.head_dim, attention.scaling)


def _base_layer(module: Any) -> Any:
    return module.get_base_layer() if hasattr(module, "get_base_layer") else module


def _is_plain_lora(module: Any) -> bool:
    """Returns whether a module has no adapter, or one that computes exactly scale * B A dropout(x)."""
    if not hasattr(module, "get_base_layer"):
        return True
    names = list(module.lora_A)
    # A `lora_variant` is DoRA and the like; a merged adapter is in the base weights already.
    return (
        type(module).__name__ == "Linear"
        and names == ["default"]
        and not module.lora_variant
        and not module.merged
        and not module.lora_bias["default"]
    )


def _build_group(parent: Any, names: tuple[str, ...], dtype: torch.dtype) -> LoraGroup:
    modules = [getattr(parent, name) for name in names]
    updates: list[LoraUpdate | None] = []
    for module in modules:
        if not hasattr(module, "get_base_layer"):  # not adapted: no PEFT layer around it
            updates.append(None)
            continue
        # Without dropout PEFT has an `Identity` here, which has no `p`.
        dropout = getattr(module.lora_dropout["default"], "p", 0.0)
        lora_a, lora_b = module.lora_A["default"].weight, module.lora_B["default"].weight
        updates.append(LoraUpdate(lora_a, lora_b, float(module.scaling["default"]), float(dropout)))
    return LoraGroup([_base_layer(module) for module in modules], updates, dtype)


def _build_layer(layer: Any, heads: Heads, dtype: torch.dtype) -> _DecoderLayer:
    attention, mlp = layer.self_attn, layer.mlp
    norms = [layer.input_layernorm, layer.post_attention_layernorm]
    attention_norm, mlp_norm = (RmsNorm(norm.weight, norm.variance_epsilon) for norm in norms)
    return _DecoderLayer(
        heads=heads,
        attention_norm=attention_norm,
        qkv=_build_group(attention, _QKV, dtype),
        head_norms=(attention.q_norm, attention.k_norm) if hasattr(attention, "q_norm") else None,
        attention_output=_build_group(attention, ("o_proj",), dtype),
        mlp_norm=mlp_norm,
        gate_up=_build_group(mlp, _GATE_UP, dtype),
        down=_build_group(mlp, ("down_proj",), dtype),
    )
