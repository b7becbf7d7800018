"""What a call of a generator asks for, checked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import jax.numpy as jnp
import numpy as np

from llm_jax.config import DecodeConfig
from llm_jax.config.validate_decode import validate_decode
from llm_jax.decode.contrastive import Contrast
from llm_jax.decode.inputs import checked_ids
from llm_jax.decode.settings import Rows
from llm_jax.decode.state import Choosing, Processor, Prompts, Room, Stops
from llm_jax.ops.sampling.settings import Settings
from llm_jax.types import ConfigError

Configs = DecodeConfig | Sequence[DecodeConfig]
"""Settings of all rows, or of each."""
Ids = Sequence[int]
MOST_LOGPROBS = 1024


class Wanted(NamedTuple):
    """What a call gives beside the tokens.

    Attributes:
        samples: texts of each prompt, which share the reading of it.
        logprobs: how many of the most likely tokens are given with their log-probabilities, beside
            that of the chosen one; None gives none.
        kind: "raw" log-probabilities of the model, or "processed" ones, of the distribution that
            the token was drawn from.
        processor: your own change of the logits, a pure function of logits float32 [B, V] and a
            ``History``, after all other processors but temperature and filters. Another function
            compiles the program again.
    """

    samples: int = 1
    logprobs: int | None = None
    kind: Literal["raw", "processed"] = "raw"
    processor: Processor | None = None


class Call(NamedTuple):
    """A call of the compiled programs, checked and as arrays."""

    prompts: Prompts
    settings: Settings
    stops: Stops
    room: Room
    choosing: Choosing
    passes: bool
    rows: Rows
    contrast: Contrast | None


def checked_configs(config: Configs, prompts: int) -> list[DecodeConfig]:
    """The settings of each prompt, checked."""
    if isinstance(config, DecodeConfig):
        validate_decode(config)
        return [config] * prompts
    if len(config) != prompts:
        raise ConfigError(f"{len(config)} settings for {prompts} prompts; give one each")
    for one in config:
        validate_decode(one)
    orders = {one.order for one in config}
    if len(orders) > 1:
        raise ConfigError(
            f"order is {' and '.join(sorted(orders))} in one batch; rows of one batch have the same"
            " order"
        )
    return list(config)


def check_wanted(wanted: Wanted, vocabulary: int) -> None:
    if wanted.samples < 1:
        raise ConfigError(f"samples is {wanted.samples}; it must be at least 1")
    most = min(MOST_LOGPROBS, vocabulary)
    if wanted.logprobs is not None and not 0 <= wanted.logprobs <= most:
        raise ConfigError(f"logprobs is {wanted.logprobs}; it must be from 0 to {most}")
    if wanted.kind not in ("raw", "processed"):
        raise ConfigError(f"kind of logprobs is {wanted.kind!r}; use raw or processed")


def contrast_of(configs: Sequence[DecodeConfig], wanted: Wanted) -> Contrast | None:
    """Settings of contrastive search; None where no row uses it."""
    alphas = [c.contrastive_alpha for c in configs]
    if not any(alphas):
        return None
    if not all(alphas):
        raise ConfigError(
            f"contrastive_alpha of row {alphas.index(0)} is 0, and that of another row is not; rows"
            " of one batch all use contrastive search, or none does"
        )
    if wanted.samples > 1:
        raise ConfigError(
            f"samples is {wanted.samples}, and contrastive search gives one text; set it to 1"
        )
    k = np.array([c.top_k for c in configs], np.int32)
    return Contrast(jnp.asarray(alphas, jnp.float32), jnp.asarray(k))


def negative_of(config: DecodeConfig, prompt: np.ndarray, vocabulary: int) -> np.ndarray:
    """What guidance moves away from."""
    if not config.negative_prompt:
        return prompt[-1:]
    if isinstance(config.negative_prompt, str):
        raise ConfigError(
            f"negative_prompt is the text {config.negative_prompt!r}, and this generator has no"
            " tokenizer; give token ids"
        )
    return checked_ids(config.negative_prompt, "negative_prompt", vocabulary)
