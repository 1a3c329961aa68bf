"""A quick forward pass for decoders of the Llama family (Llama, Mistral, Qwen 2 and 3, SmolLM2, …).

It computes what the model itself computes, on the model's own weights, without padding, with grouped products and
with the last layer's second half only where a trained token is predicted. `build_decoder` looks at a model's parts
and declines where they are not exactly those it knows; whether the result is right is then proved on tokens, by
`trainer.worker.loss`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from trainer.worker.attention import Heads, Segments, attend
from trainer.worker.blocks import Mlp, Norm, NormLinear, ResidualLinear, Rotation
from trainer.worker.lora_linear import LoraGroup, Update
from trainer.worker.model import Precision

KNOWN: Final = ("llama", "mistral", "qwen2", "qwen3")
"""`model_type`s that were compared, number by number, with their own forward pass."""

_LAYER: Final = {"self_attn", "mlp", "input_layernorm", "post_attention_layernorm"}
_ATTENTION: Final = {"q_proj", "k_proj", "v_proj", "o_proj"}
_MLP: Final = {"gate_proj", "up_proj", "down_proj", "act_fn"}
_MODEL: Final = {"embed_tokens", "layers", "norm", "rotary_emb"}


@dataclass(frozen=True)
class _Layer:
    heads: Heads
    norm: Norm
    qkv: LoraGroup
    head_norms: tuple[nn.Module, nn.Module] | None
    out: LoraGroup
    mlp_norm: Norm
    gate_up: LoraGroup
    down: LoraGroup

    @property
    def groups(self) -> tuple[LoraGroup, ...]:
        return (self.qkv, self.out, self.gate_up, self.down)


class Decoder:
    """See the module.

    Args:
        causal: transformers' causal language model.
        dtype: what products are computed in.
        checkpointing: whether a layer's inner results are made again in the backward pass instead of being kept.

    Attributes:
        dtype: as given.
        head: (vocabulary, width), in `dtype`.
        head_bias: (vocabulary,), or None.
        row_lengths: (tokens, 1): of the row that each token of the present batch is in.
    """

    def __init__(self, causal: Any, dtype: torch.dtype, *, checkpointing: bool) -> None:
        model = causal.base_model
        head = causal.get_output_embeddings()
        self.dtype = dtype
        self.head = head.weight.detach().to(dtype)
        self.head_bias = None if head.bias is None else head.bias.detach().to(dtype)
        self.row_lengths = torch.empty(0)
        self._model = model
        self._checkpointing = checkpointing
        self._layers = [_build_layer(layer, dtype) for layer in model.layers]

    def hidden(self, ids: Tensor, positions: Tensor, segments: Segments, wanted: Tensor) -> Tensor:
        """Last hidden states where they are wanted.

        Args:
            ids: (tokens,).
            positions: (tokens,): of each token in its row.
            segments: the rows.
            wanted: int (wanted,): indices into tokens.

        Returns:
            (wanted, width), normed.
        """
        for layer in self._layers:
            for group in layer.groups:
                group.refresh()
        sizes = segments.bounds.diff()
        self.row_lengths = torch.repeat_interleave(sizes, sizes, output_size=len(ids)).unsqueeze(1)
        x = self._model.embed_tokens(ids)
        tables = self._tables(x, positions)
        for layer in self._layers:
            last = wanted if layer is self._layers[-1] else None
            if self._checkpointing and torch.is_grad_enabled():
                x = checkpoint(self._run, layer, x, tables, segments, last, use_reentrant=False)
            else:
                x = self._run(layer, x, tables, segments, last)
        normed: Tensor = self._model.norm(x)
        return normed

    def _tables(self, x: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        cos, sin = self._model.rotary_emb(x, positions.unsqueeze(0))
        half = cos.shape[-1] // 2
        return tuple(table[0, :, None, :half].to(self.dtype) for table in (cos, sin))  # type: ignore[return-value]

    def _run(
        self, layer: _Layer, x: Tensor, tables: tuple[Tensor, Tensor], segments: Segments, wanted: Tensor | None
    ) -> Tensor:
        training, heads = self._model.training, layer.heads
        qkv = NormLinear.apply(x, layer.norm, layer.qkv, training, *layer.qkv.parameters)  # type: ignore[no-untyped-call]
        qkv = qkv.unflatten(1, (heads.total, heads.width))
        if layer.head_norms is not None:
            qkv = _norm_heads(qkv, heads, layer.head_norms)
        qkv = Rotation.apply(qkv, heads.query + heads.key, tables)  # type: ignore[no-untyped-call]
        mixed = attend(qkv, heads, segments)
        if wanted is not None:
            x, mixed = x.index_select(0, wanted), mixed.index_select(0, wanted)
        x = ResidualLinear.apply(x, mixed, layer.out, training, *layer.out.parameters)  # type: ignore[no-untyped-call]
        parameters = (*layer.gate_up.parameters, *layer.down.parameters)
        result: Tensor = Mlp.apply(x, layer.mlp_norm, layer.gate_up, layer.down, training, *parameters)  # type: ignore[no-untyped-call]
        return result


def _norm_heads(qkv: Tensor, heads: Heads, norms: tuple[nn.Module, nn.Module]) -> Tensor:
    query, key, value = qkv.split([heads.query, heads.key, heads.key], dim=1)
    return torch.cat([norms[0](query), norms[1](key), value], dim=1)


class NotKnownError(Exception):
    """The model has a part that the quick pass does not know; the message names it."""


def build_decoder(causal: Any, precision: Precision, *, longest: int, checkpointing: bool) -> Decoder:
    """Take a model over.

    Args:
        causal: transformers' causal language model, with PEFT's layers in it.
        precision: where, and what products are computed in.
        longest: tokens of the longest row there will be.
        checkpointing: see `Decoder`.

    Raises:
        NotKnownError: before anything was changed.
    """
    config = causal.config
    _require(config.model_type in KNOWN, "another kind of model")
    _require(config._attn_implementation in ("sdpa", "flash_attention_2"), "another attention was asked for")  # noqa: SLF001
    dtype = torch.bfloat16 if precision.autocast else precision.weights
    _require(precision.device.type == "cpu" or dtype != torch.float32, "float32 on a GPU")
    window = getattr(config, "sliding_window", None) if getattr(config, "use_sliding_window", True) else None
    _require(not window or longest <= window, "a sliding window")
    _require(not getattr(config, "attention_dropout", 0.0), "attention dropout")
    _require(set(dict(causal.base_model.named_children())) == _MODEL, "other parts than a Llama's")
    _require(type(causal.get_output_embeddings()) is nn.Linear, "another head")
    for layer in causal.base_model.layers:
        _check_layer(layer)
    return Decoder(causal, dtype, checkpointing=checkpointing)


def _require(condition: bool, otherwise: str) -> None:
    if not condition:
        raise NotKnownError(otherwise)


def _check_layer(layer: nn.Module) -> None:
    _require(set(dict(layer.named_children())) == _LAYER, "other layers than a Llama's")
    attention, mlp = dict(layer.self_attn.named_children()), dict(layer.mlp.named_children())  # type: ignore[union-attr,operator]
    _require(set(attention) in (_ATTENTION, _ATTENTION | {"q_norm", "k_norm"}), "another attention")
    _require(set(mlp) == _MLP and _is_silu(mlp["act_fn"]), "another MLP")
    for norm in (layer.input_layernorm, layer.post_attention_layernorm):
        names = {name for name, _ in norm.named_parameters()}  # type: ignore[union-attr,operator]
        _require(hasattr(norm, "variance_epsilon") and names == {"weight"}, "another norm")
    for modules in (("q_proj", "k_proj", "v_proj"), ("o_proj",)):
        _check_group([attention[name] for name in modules])
    for modules in (("gate_proj", "up_proj"), ("down_proj",)):
        _check_group([mlp[name] for name in modules])


def _is_silu(module: nn.Module) -> bool:
    return type(module).__name__ in ("SiLU", "SiLUActivation")


def _check_group(modules: list[nn.Module]) -> None:
    bases = [_base(module) for module in modules]
    _require(all(type(base) is nn.Linear for base in bases), "linear layers of another kind")
    _require(len({base.bias is None for base in bases}) == 1, "a bias on some layers only")
    for module in modules:
        _require(_plain_lora(module), "an adapter of another kind than plain LoRA")
    trained = any(parameter.requires_grad for base in bases for parameter in base.parameters())
    _require(not trained, "a trained base")


def _base(module: Any) -> Any:
    return module.get_base_layer() if hasattr(module, "get_base_layer") else module


def _plain_lora(module: Any) -> bool:
    if not hasattr(module, "get_base_layer"):
        return True
    names = list(module.lora_A)
    return (
        type(module).__name__ == "Linear"
        and names == ["default"]
        and not module.lora_variant
        and not module.merged
        and not module.lora_bias["default"]
    )


def _update(module: Any) -> Update | None:
    if not hasattr(module, "get_base_layer"):
        return None
    dropout = getattr(module.lora_dropout["default"], "p", 0.0)
    a, b = module.lora_A["default"].weight, module.lora_B["default"].weight
    return Update(a, b, float(module.scaling["default"]), float(dropout))


def _group(parent: Any, names: tuple[str, ...], dtype: torch.dtype) -> LoraGroup:
    modules = [getattr(parent, name) for name in names]
    return LoraGroup([_base(module) for module in modules], [_update(module) for module in modules], dtype)


def _build_layer(layer: Any, dtype: torch.dtype) -> _Layer:
    attention, mlp = layer.self_attn, layer.mlp
    width = attention.head_dim
    query, key = (_base(module).out_features // width for module in (attention.q_proj, attention.k_proj))
    norms = [layer.input_layernorm, layer.post_attention_layernorm]
    first, second = (Norm(norm.weight, norm.variance_epsilon, dtype) for norm in norms)
    return _Layer(
        heads=Heads(query, key, width, attention.scaling),
        norm=first,
        qkv=_group(attention, ("q_proj", "k_proj", "v_proj"), dtype),
        head_norms=(attention.q_norm, attention.k_norm) if hasattr(attention, "q_norm") else None,
        out=_group(attention, ("o_proj",), dtype),
        mlp_norm=second,
        gate_up=_group(mlp, ("gate_proj", "up_proj"), dtype),
        down=_group(mlp, ("down_proj",), dtype),
    )
