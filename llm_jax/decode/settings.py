"""The settings of a batch as arrays with one entry for each row."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from llm_jax.config.decode import DecodeConfig, Phrase
from llm_jax.decode.inputs import checked_ids
from llm_jax.decode.state import Stops
from llm_jax.ops.sampling.settings import Filters, Penalties, Rules, Settings, Watermark
from llm_jax.ops.sampling.stops import stop_table, token_bytes_table
from llm_jax.ops.sampling.tokens import pack_mask
from llm_jax.ranges import Seed, check_value
from llm_jax.types import ConfigError

# Room for what a row has several of; more compile a program once for each power of two.
_STOP_IDS = 8
_SEQUENCES = 8
_SEQUENCE_TOKENS = 8


class Rows(NamedTuple):
    """What each row of a batch is asked for.

    Attributes:
        configs: of each row; texts in them are token ids already.
        seeds: of each row, from 0 to 2**64 - 1.
        stop_ids: of each row, all tokens that end it.
    """

    configs: Sequence[DecodeConfig]
    seeds: Sequence[int]
    stop_ids: Sequence[Sequence[int]]


def row_seeds(
    configs: Sequence[DecodeConfig], seeds: Sequence[int] | None, samples: int = 1
) -> list[int]:
    """The seed of each sample of each prompt, those of a prompt together.

    Args:
        configs: of each prompt.
        seeds: of the first sample of each prompt; None gives prompt i ``seed + i * samples``.
        samples: of each prompt; each further one has the next seed.

    Raises:
        ConfigError: the number of seeds is not the number of prompts, or a seed is out of range.
    """
    if seeds is None:
        seeds = [config.seed + i * samples for i, config in enumerate(configs)]
    if len(seeds) != len(configs):
        raise ConfigError(f"{len(seeds)} seeds for {len(configs)} prompts; give one each")
    for row, seed in enumerate(seeds):
        check_value(f"the seed of row {row}", seed, Seed)
    found = [seed + sample for seed in seeds for sample in range(samples)]
    for row, seed in enumerate(found):
        check_value(f"the seed of row {row}", seed, Seed)
    return found


def settings_of(rows: Rows, vocab_size: int) -> Settings:
    """The settings of a batch on the device.

    Args:
        rows: what each row is asked for.
        vocab_size: V.

    Raises:
        ConfigError: an id that the model does not have, or every token of a row is banned.
    """
    return Settings(
        filters=_filters(rows.configs),
        penalties=_penalties(rows.configs),
        rules=_rules(rows, vocab_size),
        watermark=_watermark(rows.configs),
        guidance=_floats([c.guidance_scale for c in rows.configs]),
        renormalize=jnp.asarray([c.renormalize for c in rows.configs]),
        remove_invalid=jnp.zeros((len(rows.configs),), bool),
        seed=jnp.asarray(np.array([divmod(int(s), 2**32) for s in rows.seeds], np.uint32)),
    )


def shared_settings(config: DecodeConfig, rows: int, vocab_size: int) -> Settings:
    """Settings of rows that share them and end at their length; row i has ``seed + i``."""
    configs = [config] * rows
    return settings_of(Rows(configs, row_seeds(configs, None), [()] * rows), vocab_size)


def no_stops(rows: int, vocab_size: int) -> Stops:
    """Stop texts of rows that have none."""
    return Stops(stop_table([()] * rows), token_bytes_table([b""] * vocab_size))


def _floats(values: Sequence[float]) -> jnp.ndarray:
    return jnp.asarray(np.array(values, np.float32))


def _ints(values: Sequence[int]) -> jnp.ndarray:
    return jnp.asarray(np.array(values, np.int32))


def _filters(configs: Sequence[DecodeConfig]) -> Filters:
    return Filters(
        temperature=_floats([c.temperature for c in configs]),
        top_k=_ints([c.top_k for c in configs]),
        top_p=_floats([c.top_p for c in configs]),
        min_p=_floats([c.min_p for c in configs]),
        typical_p=_floats([c.typical_p for c in configs]),
        epsilon=_floats([c.epsilon_cutoff for c in configs]),
        eta=_floats([c.eta_cutoff for c in configs]),
        top_h=_floats([c.top_h for c in configs]),
    )


def _penalties(configs: Sequence[DecodeConfig]) -> Penalties:
    penalties = [c.penalties for c in configs]
    return Penalties(
        repetition=_floats([p.repetition_penalty for p in penalties]),
        encoder_repetition=_floats([p.encoder_repetition_penalty for p in penalties]),
        presence=_floats([p.presence_penalty for p in penalties]),
        frequency=_floats([p.frequency_penalty for p in penalties]),
        ngram=_ints([p.no_repeat_ngram_size for p in penalties]),
        encoder_ngram=_ints([p.encoder_no_repeat_ngram_size for p in penalties]),
    )


def _watermark(configs: Sequence[DecodeConfig]) -> Watermark:
    marks = [c.watermark for c in configs]
    return Watermark(
        bias=_floats([w.watermark_bias for w in marks]),
        ratio=_floats([w.watermark_ratio for w in marks]),
        key=jnp.asarray(np.array([w.watermark_key for w in marks], np.uint32)),
        width=_ints([w.watermark_width for w in marks]),
    )


def _rules(rows: Rows, vocab_size: int) -> Rules:
    tokens = [c.tokens for c in rows.configs]
    allowed = []
    begin = []
    bias = []
    for row, config in enumerate(rows.configs):
        may_come, may_begin = _allowed(config, row, vocab_size)
        allowed.append(pack_mask(may_come))
        begin.append(pack_mask(may_begin))
        bias.append(_bias(config, row, vocab_size))
    sequences = [_sequences(config, row, vocab_size) for row, config in enumerate(rows.configs)]
    sequence_ids, sequence_bias = _sequence_arrays(sequences)
    for row, t in enumerate(tokens):
        checked_ids(_present([t.forced_first_id]), _name("forced_first_id", row), vocab_size)
        checked_ids(_present([t.forced_last_id]), _name("forced_last_id", row), vocab_size)
    return Rules(
        bias=jnp.asarray(np.stack(bias)),
        allowed=jnp.asarray(np.stack(allowed)),
        begin_allowed=jnp.asarray(np.stack(begin)),
        sequence_ids=jnp.asarray(sequence_ids),
        sequence_bias=jnp.asarray(sequence_bias),
        forced_first=_ints([_or_off(t.forced_first_id) for t in tokens]),
        forced_last=_ints([_or_off(t.forced_last_id) for t in tokens]),
        stop_ids=jnp.asarray(_stop_ids(rows.stop_ids, vocab_size)),
        min_new=_ints([t.min_new_tokens for t in tokens]),
        max_new=_ints([c.max_new_tokens for c in rows.configs]),
        decay_start=_ints([t.length_decay_start for t in tokens]),
        decay_factor=_floats([t.length_decay_factor for t in tokens]),
    )


def _name(setting: str, row: int) -> str:
    return f"{setting} of row {row}"


def _present(ids: Sequence[int | None]) -> list[int]:
    return [id for id in ids if id is not None]


def _or_off(id: int | None) -> int:
    return -1 if id is None else id


def _allowed(config: DecodeConfig, row: int, vocab_size: int) -> tuple[np.ndarray, np.ndarray]:
    """bool [V] both: the tokens that may come, and those that may come first."""
    tokens = config.tokens
    may_come = np.ones((vocab_size,), bool)
    if tokens.allowed_ids:
        may_come[:] = False
        may_come[checked_ids(tokens.allowed_ids, _name("allowed_ids", row), vocab_size)] = True
    may_come[checked_ids(tokens.suppress_ids, _name("suppress_ids", row), vocab_size)] = False
    may_begin = may_come.copy()
    first = checked_ids(tokens.begin_suppress_ids, _name("begin_suppress_ids", row), vocab_size)
    may_begin[first] = False
    if not may_begin.any():
        raise ConfigError(
            f"row {row}: allowed_ids, suppress_ids and begin_suppress_ids leave no token that may"
            " come; allow at least one"
        )
    return may_come, may_begin


def _bias(config: DecodeConfig, row: int, vocab_size: int) -> np.ndarray:
    """float32 [V]."""
    bias = np.zeros((vocab_size,), np.float32)
    pairs = config.tokens.logit_bias
    ids = checked_ids([id for id, _ in pairs], _name("logit_bias", row), vocab_size)
    for id, (_, value) in zip(ids, pairs):
        if not value < np.inf:
            raise ConfigError(
                f"logit_bias of row {row} has {value} for token {id}; it must be finite or -inf"
            )
        bias[id] += value
    return bias


Sequences = list[tuple[np.ndarray, float]]


def _sequences(config: DecodeConfig, row: int, vocab_size: int) -> Sequences:
    """The sequences of tokens with a bias: bad words with -inf."""
    words = [(phrase, -np.inf, "bad_words") for phrase in config.tokens.bad_words]
    biased = [(phrase, value, "sequence_bias") for phrase, value in config.tokens.sequence_bias]
    found: Sequences = []
    for phrase, value, setting in (*words, *biased):
        if not value < np.inf:
            raise ConfigError(
                f"sequence_bias of row {row} has {value} for {phrase!r}; it must be finite or -inf"
            )
        found.append((_phrase_ids(phrase, _name(setting, row), vocab_size), value))
    return found


def _phrase_ids(phrase: Phrase, name: str, vocab_size: int) -> np.ndarray:
    if isinstance(phrase, str):
        raise ConfigError(
            f"{name} has the text {phrase!r}, and this generator has no tokenizer; give token ids"
        )
    ids = checked_ids(phrase, name, vocab_size)
    if not len(ids):
        raise ConfigError(f"{name} has a sequence without tokens; leave it out")
    return ids


def _sequence_arrays(rows: Sequence[Sequences]) -> tuple[np.ndarray, np.ndarray]:
    """int32 [B, n, w] with -1 before each sequence, and float32 [B, n]."""
    number = power_of_two(max(map(len, rows)), _SEQUENCES)
    longest = max((len(ids) for row in rows for ids, _ in row), default=0)
    width = power_of_two(longest, _SEQUENCE_TOKENS)
    sequence_ids = np.full((len(rows), number, width), -1, np.int32)
    bias = np.zeros((len(rows), number), np.float32)
    for r, row in enumerate(rows):
        for n, (ids, value) in enumerate(row):
            sequence_ids[r, n, width - len(ids) :] = ids
            bias[r, n] = value
    return sequence_ids, bias


def _stop_ids(rows: Sequence[Sequence[int]], vocab_size: int) -> np.ndarray:
    """int32 [B, m], -1 after those of a row."""
    given = [checked_ids(list(dict.fromkeys(ids)), "stop_ids", vocab_size) for ids in rows]
    out = np.full((len(rows), power_of_two(max(map(len, given)), _STOP_IDS)), -1, np.int32)
    for row, ids in zip(out, given):
        row[: len(ids)] = ids
    return out


def power_of_two(size: int, least: int) -> int:
    """The least of ``least``, 2 * ``least``, 4 * ``least``, … that is at least ``size``."""
    room = least
    while room < size:
        room *= 2
    return room
