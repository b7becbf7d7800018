"""What runs together: one table of features and the ways to run them.

``refuse`` raises the errors, and ``page`` makes the tables of docs/support.md. What is not in
``REFUSED`` is supported.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

from llm_jax.config.model import ModelConfig
from llm_jax.config.parametrization import MupConfig
from llm_jax.config.positions import RelativePositionsConfig
from llm_jax.config.sections import value_of
from llm_jax.types import ConfigError


class Feature(NamedTuple):
    """Something that a model may have, and that some ways to run it do not honour.

    Attributes:
        title: Its name in the table.
        key: Setting of ``ModelConfig`` that it comes from.
        has: Whether a model has it.
        without: What to set the key to for a model without it.
    """

    title: str
    key: str
    has: Callable[[ModelConfig], bool]
    without: str


class Way(NamedTuple):
    """A way to run a model.

    Attributes:
        title: Its name in the table.
        other: What to use in its place.
    """

    title: str
    other: str


def _has_encoder(m: ModelConfig) -> bool:
    return m.encoder is not None


def _sees_both_ways(m: ModelConfig) -> bool:
    return not m.causal or m.encoder is not None


def _is_encoder(m: ModelConfig) -> bool:
    return not m.causal


def _has_relative_positions(m: ModelConfig) -> bool:
    return isinstance(m.positions, RelativePositionsConfig)


def _has_first_layers(m: ModelConfig) -> bool:
    return m.first_layers is not None


def _has_dropout(m: ModelConfig) -> bool:
    return m.dropout > 0


def _has_no_experts(m: ModelConfig) -> bool:
    return m.experts is None


def _has_latents(m: ModelConfig) -> bool:
    return m.latent is not None


def _has_clamp(m: ModelConfig) -> bool:
    return bool(value_of(m, "mlp.clamp"))


def _has_softcap(m: ModelConfig) -> bool:
    return m.attention.softcap > 0


def _has_sinks(m: ModelConfig) -> bool:
    return m.attention.sinks


def _has_other_values(m: ModelConfig) -> bool:
    return m.value_dim != m.head_dim


def _is_recurrent(m: ModelConfig) -> bool:
    return m.recurrent is not None


def _has_mup(m: ModelConfig) -> bool:
    return isinstance(m.parametrization, MupConfig)


FEATURES = {
    "encoder": Feature("encoder–decoder", "encoder", _has_encoder, "none"),
    "both_ways": Feature("attention in both directions", "causal", _sees_both_ways, "True"),
    "is_encoder": Feature("encoder alone", "causal", _is_encoder, "True"),
    "relative": Feature("relative positions", "positions", _has_relative_positions, "rope"),
    "softcap": Feature("soft cap on scores", "attention.softcap", _has_softcap, "0"),
    "sinks": Feature("attention sinks", "attention.sinks", _has_sinks, "False"),
    "value_dim": Feature("values of another width", "attention.value_dim", _has_other_values, "0"),
    "latent": Feature("latent attention", "attention", _has_latents, "multi_head"),
    "first_layers": Feature(
        "leading layers of their own", "first_layers", _has_first_layers, "none"
    ),
    "clamp": Feature("clamped MLPs", "mlp.clamp", _has_clamp, "0"),
    "no_experts": Feature("no experts", "experts", _has_no_experts, "on"),
    "dropout": Feature("dropout", "dropout", _has_dropout, "0"),
    "mup": Feature("muP", "parametrization", _has_mup, "standard"),
    "recurrent": Feature("recurrent layers", "recurrent", _is_recurrent, "none"),
}
_AXES = "the other axes of the mesh"
_XLA = "execution.attention xla"
# What to use where no backend of attention will do.
_AUTO = "execution.attention auto"
_BACKENDS = ("xla", "dot_product", "blockwise", "splash", "cudnn")
_ADAMW = "optimizer.update adamw"
WAYS = {
    "xla": Way("attention `xla`", _XLA),
    "dot_product": Way("attention `dot_product`", _XLA),
    "blockwise": Way("attention `blockwise`", _XLA),
    "splash": Way("attention `splash`", _XLA),
    "cudnn": Way("attention `cudnn`", _XLA),
    "data": Way("`mesh.data`", _AXES),
    "fsdp": Way("`mesh.fsdp`", _AXES),
    "tensor": Way("`mesh.tensor`", _AXES),
    "context": Way("`mesh.context`", _AXES),
    "expert": Way("`mesh.expert`", _AXES),
    "pipeline": Way("`mesh.pipeline`", _AXES),
    "adamw": Way("`adamw`", _ADAMW),
    "adafactor": Way("`adafactor`", _ADAMW),
    "lion": Way("`lion`", _ADAMW),
    "muon": Way("`muon`", _ADAMW),
    "sgd": Way("`sgd`", _ADAMW),
    "estimate": Way("`plan --search`", "plan without --search"),
    "plan_decode": Way("`plan --decode`", "plan without --decode"),
    "decode": Way("decoding", "embed"),
    "paged": Way("a paged cache", "cache.layout dense"),
    "int8": Way("an int8 cache", "cache.dtype compute"),
    "drafts": Way("drafts", "decoding without a draft"),
    "paged_kernel": Way("read by the kernel", "reads gather"),
    "embed": Way("`embed`", "generate"),
}
# Way -> feature -> why it is refused.
_NO_CACHE = "writes tokens one by one, each from those before it"
_NO_ATTENTION = "would compute attention, and there is none"
REFUSED: dict[str, dict[str, str]] = {
    "xla": {"recurrent": _NO_ATTENTION},
    "dot_product": {
        "recurrent": _NO_ATTENTION,
        "relative": "cannot add a bias to the scores",
        "softcap": "cannot honour a soft cap on the scores",
        "sinks": "cannot honour attention sinks",
        "value_dim": "cannot honour values of another width than keys",
    },
    "blockwise": {
        "recurrent": _NO_ATTENTION,
        "relative": "cannot add a bias to the scores",
    },
    "splash": {
        "recurrent": _NO_ATTENTION,
        "both_ways": "takes only masks that are causal",
        "relative": "cannot add a bias to the scores",
    },
    "cudnn": {
        "recurrent": _NO_ATTENTION,
        "relative": "cannot add a bias to the scores",
        "softcap": "cannot honour a soft cap on the scores",
        "sinks": "cannot honour attention sinks",
        "value_dim": "cannot honour values of another width than keys",
    },
    "context": {
        "encoder": "does not split rows of an encoder and a decoder",
        "relative": "does not split a bias for distances",
        "recurrent": "splits positions, which recurrent layers read one after another",
    },
    "expert": {
        "recurrent": "splits experts, and there are none",
        "no_experts": "splits experts, and there are none",
    },
    "pipeline": {
        "encoder": "has stages of one stack of layers",
        "relative": "does not hand a bias for distances from stage to stage",
        "first_layers": "has stages of layers of one kind",
        "dropout": "would draw other numbers than without stages",
        "recurrent": "has stages of transformer blocks",
    },
    "sgd": {"mup": "has no learning rates for it"},
    "estimate": {
        "recurrent": "estimates the memory of transformers alone",
        "encoder": "estimates the memory of decoders alone",
        "is_encoder": "estimates the memory of decoders alone",
        "relative": "estimates no bias for distances",
        "latent": "estimates no latents",
        "value_dim": "estimates no values of another width",
        "first_layers": "estimates layers of one kind",
        "clamp": "estimates no clamp",
    },
    "plan_decode": {
        "encoder": "plans decoders alone",
        "is_encoder": "plans decoders alone",
    },
    "decode": {"is_encoder": _NO_CACHE},
    "paged": {
        "is_encoder": _NO_CACHE,
        "recurrent": "keeps tokens in pages, and recurrent layers keep one state a row",
    },
    "int8": {
        "is_encoder": _NO_CACHE,
        "recurrent": "keeps keys and values in int8, and recurrent layers have none",
    },
    "drafts": {
        "is_encoder": _NO_CACHE,
        "recurrent": "take tokens back, and recurrent layers keep no earlier state",
    },
    "paged_kernel": {
        "relative": "cannot add a bias to the scores",
        "sinks": "cannot honour attention sinks",
        "value_dim": "cannot honour values of another width than keys",
        "latent": "reads keys and values of heads",
    },
    "embed": {"encoder": "makes vectors with models of one stack"},
}


def refusal(model: ModelConfig, way: str, named: str) -> str:
    """Why a model cannot be run in a way, with the fix; empty where it can.

    Args:
        model: the model.
        way: a key of ``WAYS``.
        named: the way as the user chose it, such as ``mesh.context 4``.
    """
    for name, why in REFUSED.get(way, {}).items():
        feature = FEATURES[name]
        if feature.has(model):
            key = _deciding(model, name)
            fix = "none" if key == "encoder" else feature.without
            return (
                f"model.{key} is {value_of(model, key)!r}, and {named} {why}; set model.{key} to"
                f" {fix}, or use {_other(way, name)}"
            )
    return ""


def _other(way: str, name: str) -> str:
    """What to use in the place of a way to run a model with a feature."""
    return _AUTO if name == "recurrent" and way in _BACKENDS else WAYS[way].other


def _deciding(model: ModelConfig, name: str) -> str:
    """The setting that a feature comes from in this model."""
    if name == "both_ways" and model.encoder is not None:
        return "encoder"
    return FEATURES[name].key


def refuse(model: ModelConfig, way: str, named: str) -> None:
    """Raise ConfigError where ``refusal`` has a reason."""
    reason = refusal(model, way, named)
    if reason:
        raise ConfigError(reason)


def page() -> str:
    """The tables of docs/support.md."""
    axes = ("data", "fsdp", "tensor", "context", "expert", "pipeline")
    rules = ("adamw", "adafactor", "lion", "muon", "sgd")
    others = ("decode", "paged", "int8", "drafts", "embed", "estimate", "plan_decode")
    pages = ("paged_kernel",)
    return "\n".join(
        f"{title}\n\n{_table(ways)}\n"
        for title, ways in (
            ("### Attention backends", _BACKENDS),
            ("### Mesh axes", axes),
            ("### Update rules", rules),
            ("### Decoding and planning", others),
            ("### A paged cache on TPU (what is refused is read by gather)", pages),
        )
    )


def _table(ways: Iterable[str]) -> str:
    ways = tuple(ways)
    features = [name for name in FEATURES if any(name in REFUSED.get(way, {}) for way in ways)]
    head = f"| | {' | '.join(WAYS[way].title for way in ways)} |"
    rows = [head, "|---" * (len(ways) + 1) + "|"]
    for name in features:
        cells = ("refused" if name in REFUSED.get(way, {}) else "yes" for way in ways)
        rows.append(f"| {FEATURES[name].title} | {' | '.join(cells)} |")
    return "\n".join(rows)
