"""A quick forward pass for decoders of the Llama family (Llama, Mistral, Qwen 2 and 3, SmolLM2, …).

It computes what the model itself computes, on the model's own weights, without padding, with grouped products and
with the last layer's second half only where a trained token is predicted. `unknown_part` looks at a model's parts
and names what is not exactly as known; whether the result is right is then proved on tokens, by
`trainer.training.fused.equivalence`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from trainer.training.fused.attention import attend
from trainer.training.fused.attention_layout import Heads, RotaryTables
from trainer.training.fused.blocks import Mlp, Norm, NormLinear, ResidualLinear
from trainer.training.fused.lora_linear import LoraGroup, Refresh, Update
from trainer.training.fused.segments import Segments

KNOWN: Final = ("llama", "mistral", "qwen2", "qwen3")
"""`model_type`s that were compared, number by number, with their own forward pass."""

_LAYER: Final = {"self_attn", "mlp", "input_layernorm", "post_attention_layernorm"}
_ATTENTION: Final = {"q_proj", "k_proj", "v_proj", "o_proj"}
_MLP: Final = {"gate_proj", "up_proj", "down_proj", "act_fn"}
_QKV: Final = ("q_proj", "k_proj", "v_proj")
_GATE_UP: Final = ("gate_proj", "up_proj")
_ATTENTIONS: Final = ("sdpa", "flash_attention_2", "flash_attention_3")
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
        adapted: whether the adapter takes part; without it this is the base model.
    """

    def __init__(self, causal: Any, dtype: torch.dtype, *, checkpointing: bool) -> None:
        model = causal.base_model
        head = causal.get_output_embeddings()
        _let_go_of_the_file([causal.get_input_embeddings(), head, *_norms(model)])
        self.dtype = dtype
        self.head = head.weight.detach().to(dtype)
        self.head_bias = None if head.bias is None else head.bias.detach().to(dtype)
        self.row_lengths = torch.empty(0)
        self.adapted = True
        self._model = model
        self._checkpointing = checkpointing
        self._layers = [_build_layer(layer, heads_of(causal), dtype) for layer in model.layers]
        self._refresh = Refresh([group for layer in self._layers for group in layer.groups])

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
        self._refresh(off=not self.adapted)
        if not segments.shared and not segments.groups:
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

    def _tables(self, x: Tensor, positions: Tensor) -> RotaryTables:
        cos, sin = self._model.rotary_emb(x, positions.unsqueeze(0))
        half = cos.shape[-1] // 2
        return tuple(table[0, :, None, :half].to(self.dtype) for table in (cos, sin))

    def _run(
        self, layer: _Layer, x: Tensor, tables: RotaryTables, segments: Segments, wanted: Tensor | None
    ) -> Tensor:
        training, heads = self._model.training, layer.heads
        qkv = NormLinear.apply(x, layer.norm, layer.qkv, training, *layer.qkv.parameters)  # type: ignore[no-untyped-call]
        qkv = qkv.unflatten(1, (heads.total, heads.width))
        if layer.head_norms is not None:
            qkv = _norm_heads(qkv, heads, layer.head_norms)
        mixed = attend(qkv, heads, segments, tables)
        if wanted is not None:
            x, mixed = x.index_select(0, wanted), mixed.index_select(0, wanted)
        x = ResidualLinear.apply(x, mixed, layer.out, training, *layer.out.parameters)  # type: ignore[no-untyped-call]
        parameters = (*layer.gate_up.parameters, *layer.down.parameters)
        result: Tensor = Mlp.apply(x, layer.mlp_norm, layer.gate_up, layer.down, training, *parameters)  # type: ignore[no-untyped-call]
        return result


def _norms(model: Any) -> list[nn.Module]:
    return [module for module in model.modules() if hasattr(module, "variance_epsilon")]


def _let_go_of_the_file(modules: Iterable[nn.Module]) -> None:
    """Copy what the groups do not: one view of the mapped weights' file keeps all of it in memory."""
    for parameter in {parameter for module in modules for parameter in module.parameters()}:
        if parameter.device.type == "cpu":
            parameter.data = parameter.data.clone()


def _norm_heads(qkv: Tensor, heads: Heads, norms: tuple[nn.Module, nn.Module]) -> Tensor:
    query, key, value = torch.split(qkv, [heads.query, heads.key, heads.key], dim=1)
    return torch.cat([norms[0](query), norms[1](key), value], dim=1)


def unknown_part(causal: Any, dtype: torch.dtype, device: torch.device, *, longest: int) -> str | None:
    """What keeps a model from the quick pass, in words; None where nothing does.

    Args:
        causal: transformers' causal language model, with PEFT's layers in it.
        dtype: what products are computed in.
        device: where.
        longest: tokens of the longest row there will be.
    """
    config = causal.config
    window = getattr(config, "sliding_window", None) if getattr(config, "use_sliding_window", True) else None
    obstacles = {
        "another kind of model": config.model_type not in KNOWN,
        "another attention was asked for": config._attn_implementation not in _ATTENTIONS,  # noqa: SLF001
        "float32 on a GPU": device.type != "cpu" and dtype == torch.float32,
        "a sliding window": window is not None and longest > window,
        "attention dropout": bool(getattr(config, "attention_dropout", 0.0)),
        "other parts than a Llama's": set(dict(causal.base_model.named_children())) != _MODEL,
        "another head": type(causal.get_output_embeddings()) is not nn.Linear,
        "a trained head or embedding": _is_trained(causal.get_output_embeddings(), causal.get_input_embeddings()),
    }
    found = next((words for words, stands in obstacles.items() if stands), None)
    return found or next(
        (words for layer in causal.base_model.layers if (words := _unknown_in_layer(layer))), None
    )


def _unknown_in_layer(layer: Any) -> str | None:
    if set(dict(layer.named_children())) != _LAYER:
        return "other layers than a Llama's"
    attention, mlp = dict(layer.self_attn.named_children()), dict(layer.mlp.named_children())
    norms = (layer.input_layernorm, layer.post_attention_layernorm)
    if set(attention) not in (_ATTENTION, _ATTENTION | {"q_norm", "k_norm"}) or set(mlp) != _MLP:
        return "another attention or MLP"
    if type(mlp["act_fn"]).__name__ not in ("SiLU", "SiLUActivation"):
        return "another activation"
    if any(
        not hasattr(norm, "variance_epsilon") or set(dict(norm.named_parameters())) != {"weight"} for norm in norms
    ):
        return "another norm"
    if _is_trained(*norms):
        return "a trained norm"
    groups = [[attention[name] for name in names] for names in (_QKV, ("o_proj",))]
    groups += [[mlp[name] for name in names] for names in (_GATE_UP, ("down_proj",))]
    return next((words for group in groups if (words := _unknown_in_group(group))), None)


def _unknown_in_group(modules: list[Any]) -> str | None:
    bases = [_base(module) for module in modules]
    if any(type(base) is not nn.Linear for base in bases):
        return "linear layers of another kind"
    if len({base.bias is None for base in bases}) > 1:
        return "a bias on some layers only"
    if not all(_plain_lora(module) for module in modules):
        return "an adapter of another kind than plain LoRA"
    return "a trained base" if _is_trained(*bases) else None


def _is_trained(*modules: nn.Module) -> bool:
    return any(parameter.requires_grad for module in modules for parameter in module.parameters())


def heads_of(causal: Any) -> Heads:
    """How attention is cut into heads."""
    attention = causal.base_model.layers[0].self_attn
    query, key = (
        _base(module).out_features // attention.head_dim for module in (attention.q_proj, attention.k_proj)
    )
    return Heads(query, key, attention.head_dim, attention.scaling)


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


def _build_layer(layer: Any, heads: Heads, dtype: torch.dtype) -> _Layer:
    attention, mlp = layer.self_attn, layer.mlp
    norms = [layer.input_layernorm, layer.post_attention_layernorm]
    first, second = (Norm(norm.weight, norm.variance_epsilon, dtype) for norm in norms)
    return _Layer(
        heads=heads,
        norm=first,
        qkv=_group(attention, _QKV, dtype),
        head_norms=(attention.q_norm, attention.k_norm) if hasattr(attention, "q_norm") else None,
        out=_group(attention, ("o_proj",), dtype),
        mlp_norm=second,
        gate_up=_group(mlp, _GATE_UP, dtype),
        down=_group(mlp, ("down_proj",), dtype),
    )
