"""The compiled program of beam search: prompts are read once, and a loop continues their beams.

A prompt's K beams are K rows of the cache. After each step the cache is gathered by rows, so that
no token of a beam is read twice.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import PartitionSpec

from llm_jax.decode.beams.phrases import Phrases, select_with_phrases
from llm_jax.decode.beams.selection import (
    Candidates,
    Finished,
    Group,
    Rules,
    completed,
    drawn,
    empty_group,
    likeliest,
    select,
)
from llm_jax.decode.placement import place_cache
from llm_jax.decode.programs import decode_step, padded, read, step_over_switch
from llm_jax.decode.prompts import prefill_batch
from llm_jax.models import Model
from llm_jax.ops.cache import Cache
from llm_jax.ops.sampling import row_keys
from llm_jax.ops.sampling.history import History, history_of
from llm_jax.ops.sampling.process import process
from llm_jax.ops.sampling.settings import Settings
from llm_jax.sharding import RULES, own_sizes
from llm_jax.types import Params

Processor = Callable[[Array, History], Array]


class BeamSettings(NamedTuple):
    """Settings of each prompt's search, arrays with a leading axis B. Another value does not
    compile the program again.

    Attributes:
        length_penalty: float32 [B].
        early_stopping: int32 [B], index in ``config.search.EARLY_STOPPING``.
        diversity_penalty: float32 [B].
        phrases: required phrases; None is none.
    """

    length_penalty: Array
    early_stopping: Array
    diversity_penalty: Array
    phrases: Phrases | None = None


class BeamForm(NamedTuple):
    """What the program of a search is compiled for.

    Attributes:
        beams: K, of each prompt.
        groups: that the beams are divided into.
        sample: whether continuations are drawn.
        keeps: the values of ``kept`` that prompts have, where continuations are drawn.
        cache_length: tokens of a row that the cache has room for.
        max_new_tokens: N, most new tokens of a text.
        order: of the processors, as in ``ops.sampling.process``.
        own: the user's processor; None is none.
        passes: whether a text may pass ``ModelConfig.rope_switch`` while it is written.
    """

    beams: int
    groups: int
    sample: bool
    keeps: tuple[int, ...]
    cache_length: int
    max_new_tokens: int
    order: str = "hf"
    own: Processor | None = None
    passes: bool = False


class Found(NamedTuple):
    """What a search returns.

    Attributes:
        texts: the finished texts, [B, K, …], the best first; a score of -inf is no text.
        failed: bool [B], rows whose logits were not finite; the search ends at the first.
        met: bool [B, P], required phrases of the unfinished text that has most of them; None
            without required phrases.
        steps: int32 [], new tokens when the search ended.
    """

    texts: Finished
    failed: Array
    met: Array | None
    steps: Array


class State(NamedTuple):
    """State of the loop. Row b * K + i is of beam i of prompt b, and the beams of a group are
    together.

    Attributes:
        new: int32 [], new tokens of each running text.
        logits: [B * K, V], of the token after each text.
        cache: of B * K rows, with every token of a text.
        history: of B * K rows, with every token of a text.
        groups: the searches, arrays [G, B, …].
        met: bool [G, B, k, P], required phrases of each running text; None without phrases.
        failed: bool [B].
    """

    new: Array
    logits: Array
    cache: Cache
    history: History
    groups: Group
    met: Array | None
    failed: Array

    @property
    def unfinished(self) -> Array:
        """bool [], whether any prompt's search goes on."""
        return jnp.any(self.groups.open) & ~jnp.any(self.failed)


class Choice(NamedTuple):
    """What a step chose: arrays [B * K].

    Attributes:
        token: int32, the next token of each running text.
        parent: int32, the row that has the tokens before it.
    """

    token: Array
    parent: Array


class Search(NamedTuple):
    """What stays the same in a search.

    Attributes:
        model: the model.
        params: its parameters.
        settings: of each prompt, [B, …].
        beam_settings: ``settings`` of each beam of a group, [B * k, …].
        beams: of each prompt.
        form: static.
    """

    model: Model
    params: Params
    settings: Settings
    beam_settings: Settings
    beams: BeamSettings
    form: BeamForm

    @property
    def rules(self) -> Rules:
        """Of each prompt."""
        given = self.settings.rules
        return Rules(
            stop_ids=given.stop_ids,
            max_new=given.max_new,
            length_penalty=self.beams.length_penalty,
            early_stopping=self.beams.early_stopping,
        )

    @property
    def prompts(self) -> int:
        """B."""
        return self.beams.length_penalty.shape[0]

    @property
    def size(self) -> int:
        """k, the beams of a group."""
        return self.form.beams // self.form.groups

    def by_group(self, rows: Array) -> Array:
        """[B * K, …] as [G, B * k, …]."""
        parted = rows.reshape(self.prompts, self.form.groups, self.size, *rows.shape[1:])
        return parted.swapaxes(0, 1).reshape(self.form.groups, -1, *rows.shape[1:])

    def by_row(self, of_groups: Array) -> Array:
        """[G, B, k] as [B * K]."""
        return of_groups.swapaxes(0, 1).reshape(-1)

    def candidates(self, vocabulary: int) -> int:
        """Candidates of a group of which k do not stop, where so many exist."""
        per_beam = max(2, 1 + self.settings.rules.stop_ids.shape[1])
        return min(per_beam, vocabulary) * self.size


def searching(
    model: Model, params: Params, settings: Settings, beams: BeamSettings, form: BeamForm
) -> Search:
    """The search of given settings. Args: as ``search_beams``."""
    most = jnp.minimum(settings.rules.max_new, form.max_new_tokens)
    settings = settings._replace(rules=settings.rules._replace(max_new=most))
    prompt = jnp.repeat(jnp.arange(most.shape[0]), form.beams // form.groups)
    return Search(model, params, settings, settings.gather(prompt), beams, form)


def search_beams(
    model: Model,
    params: Params,
    tokens: Array,
    lengths: Array,
    settings: Settings,
    beams: BeamSettings,
    form: BeamForm,
) -> Found:
    """Reads prompts and searches the best texts after each.

    Args:
        model: the model.
        params: its parameters.
        tokens: int [B, T], prompts, padded on the right.
        lengths: int [B], at least 1.
        settings: of each prompt; its filters are used only if the form samples.
        beams: of each prompt's search.
        form: static.
    """
    search = searching(model, params, settings, beams, form)
    state = begin(search, tokens, lengths)
    state = jax.lax.while_loop(lambda x: x.unfinished, partial(advance, search), state)
    return found_of(search, state)


def advance(search: Search, state: State) -> State:
    """One step: continuations are chosen, and read unless the search has ended with them."""
    state, choice = choose(search, state)
    step = partial(read_choice, search)
    return jax.lax.cond(state.unfinished, step, lambda state, _: state, state, choice)


def read_choice(search: Search, state: State, choice: Choice) -> State:
    """The state with the tokens of ``choice`` read."""
    cache = place_cache(reordered(state.cache, choice.parent))
    token = choice.token
    if search.form.passes:
        switch = search.model.config.rope_switch
        texts = _padded_texts(state.history, padded(switch + 1, search.form.cache_length))
        over = partial(step_over_switch, search.model, search.params, history=texts)
        step = partial(decode_step, search.model, search.params)
        logits, cache = jax.lax.cond(jnp.any(cache.length == switch), over, step, token, cache)
    else:
        logits, cache = decode_step(search.model, search.params, token, cache)
    return state._replace(logits=logits, cache=place_cache(cache))


def _padded_texts(history: History, width: int) -> Array:
    """The first ``width`` tokens of each text: int32 [B * K, width], padded on the right."""
    missing = max(0, width - history.ids.shape[1])
    return jnp.pad(history.ids, ((0, 0), (0, missing)))[:, :width]


def reordered(cache: Cache, rows: Array) -> Cache:
    """``cache`` gathered by ``rows``, which stay within a prompt.

    What an encoder read is the same in all rows of a prompt, and stays.
    """
    gathered = _gathered_in_place(cache, rows)
    layers = tuple(new._replace(cross=old.cross) for new, old in zip(gathered.layers, cache.layers))
    return gathered._replace(layers=layers, encoder_segments=cache.encoder_segments)


def _gathered_in_place(cache: Cache, rows: Array) -> Cache:
    """``cache.gather(rows)``; on a mesh without sending what a device has already: all rows of its
    prompts.
    """
    sizes = own_sizes()
    split = tuple(axis for axis in RULES["batch"] or () if sizes[axis] > 1)
    if not split:
        return cache.gather(rows)

    def gather(cache: Cache, rows: Array) -> Cache:
        return cache.gather(rows - jax.lax.axis_index(split) * rows.shape[0])

    def spec(_: Array, axes: tuple) -> PartitionSpec:
        return PartitionSpec(*(split if axis == "batch" else None for axis in axes))

    specs = jax.tree.map(spec, cache, cache.axes)
    by_row = PartitionSpec(split)
    run = jax.shard_map(
        gather, in_specs=(specs, by_row), out_specs=specs, axis_names=frozenset(split)
    )
    return run(cache, rows)


def begin(search: Search, tokens: Array, lengths: Array) -> State:
    """The state before the first new token: each prompt is read once, for all of its beams."""
    form = search.form
    begun = prefill_batch(search.model.config, tokens, lengths)
    encoder = {}
    source: dict[str, Any] = {}
    if begun.encoder is not None:
        encoder = {"encoder_length": begun.encoder.ids.shape[1]}
        source = {"source_ids": tokens, "source_length": lengths}
    B = search.prompts
    cache = place_cache(search.model.init_cache(B, form.cache_length, **encoder))
    logits, cache = read(search.model, search.params, begun, cache)
    text_lengths = jnp.sum(begun.inputs.segment_ids != 0, axis=1)
    room = begun.inputs.ids.shape[1] + form.max_new_tokens
    history = history_of(begun.inputs.ids, text_lengths, room, **source)

    phrases = search.beams.phrases
    met = None
    if phrases is not None:
        met = jnp.zeros((form.groups, B, search.size, phrases.ids.shape[1]), bool)
    group = empty_group(B, search.size, form.max_new_tokens)
    prompt = jnp.repeat(jnp.arange(B), form.beams)
    return State(
        new=jnp.int32(0),
        logits=jnp.take(logits, prompt, axis=0),
        cache=place_cache(cache.gather(prompt)),
        history=history.gather(prompt),
        groups=jax.tree.map(lambda a: jnp.stack([a] * form.groups), group),
        met=met,
        failed=jnp.zeros((B,), bool),
    )


class _OfGroup(NamedTuple):
    """What a step knows of one group: the search, and of its B * k rows logits, texts and, where
    they have constraints, allowed tokens.
    """

    group: Group
    met: Array | None
    logits: Array
    history: History
    allowed: Array | None


def choose(search: Search, state: State, allowed: Array | None = None) -> tuple[State, Choice]:
    """The state with continuations chosen of its logits, and the choice, which is to be read.

    Args:
        search: the search.
        state: before the step.
        allowed: uint32 [B * K, ceil(V / 32)], tokens that may come next in each row, beside what
            the settings allow; None is all.
    """
    V = state.logits.shape[1]

    def step(taken: Array, given: _OfGroup) -> tuple[Array, tuple]:
        """``taken``: float32 [B, V], how often earlier groups chose each token at this step."""
        total = given.group.running.score[..., None] + _scores(search, given, taken)
        group, met, chosen = _selected(search, given, total, state.new)
        counted = given.group.open[:, None] & (chosen.score > -jnp.inf)
        return taken + _times(chosen.token, counted, V), (group, met, chosen)

    of_rows = (state.logits, state.history, allowed)
    given = _OfGroup(state.groups, state.met, *jax.tree.map(search.by_group, of_rows))
    taken = jnp.zeros((search.prompts, V))
    _, (groups, met, chosen) = jax.lax.scan(step, taken, given)

    first = jnp.arange(search.prompts)[None, :, None] * search.form.beams
    of_group = jnp.arange(search.form.groups)[:, None, None] * search.size
    choice = Choice(search.by_row(chosen.token), search.by_row(chosen.parent + first + of_group))
    one = jnp.ones_like(choice.token)
    state = state._replace(
        new=state.new + 1,
        history=state.history.gather(choice.parent).append(choice.token[:, None], one),
        groups=groups,
        met=met,
        failed=_failed(search, state),
    )
    return state, choice


def settle(search: Search, state: State, complete: Array) -> State:
    """The state with texts finished that are complete without a stop token: bool [B * K].

    One that lacks a required phrase is dropped.
    """
    shape = state.groups.running.score.shape
    ends = search.by_group(complete).reshape(shape)
    counts = ends
    phrases = search.beams.phrases
    if phrases is not None and state.met is not None:
        counts = ends & jax.vmap(phrases.all_met)(state.met)
    of_group = partial(completed, new=state.new, rules=search.rules)
    return state._replace(groups=jax.vmap(of_group)(state.groups, ends, counts))


def _scores(search: Search, given: _OfGroup, taken: Array) -> Array:
    """Log-probabilities float32 [B, k, V] of a group's next tokens, processed."""
    settings = search.beam_settings
    if given.allowed is not None:
        allowed = settings.rules.allowed & given.allowed
        settings = settings._replace(rules=settings.rules._replace(allowed=allowed))
    if search.form.groups > 1:
        # In the order of transformers the penalty comes with the biases, before other processors.
        penalty = search.beams.diversity_penalty[:, None] * taken
        bias = settings.rules.bias - jnp.repeat(penalty, search.size, axis=0)
        settings = settings._replace(rules=settings.rules._replace(bias=bias))
    scores = jax.nn.log_softmax(given.logits.astype(jnp.float32), axis=-1)
    scores = _processed(search, settings, given.history, scores)
    return scores.reshape(search.prompts, search.size, -1)


def _processed(search: Search, settings: Settings, history: History, scores: Array) -> Array:
    """Log-probabilities [B * k, V] after all processors, and the filters where texts are drawn."""
    form = search.form
    run = partial(process, scores, settings, history, order=form.order, own=form.own)
    if not form.sample:
        return run(warp=False)
    wanted = kept(settings.rules.stop_ids)[:, None]
    out = run(keep=form.keeps[0])
    for keep in form.keeps[1:]:
        out = jnp.where(wanted == keep, run(keep=keep), out)
    return out


def kept(stop_ids: Array) -> Array:
    """int32 [B], tokens that a filter leaves at least of those of a beam; ``stop_ids`` [B, m].

    A beam then has a continuation that does not stop, as in transformers.
    """
    return jnp.maximum(2, 1 + jnp.sum(stop_ids >= 0, axis=1))


def _selected(
    search: Search, given: _OfGroup, total: Array, new: Array
) -> tuple[Group, Array | None, Candidates]:
    """A group after the step, the phrases that its texts have, and the candidates that go on."""
    rules = search.rules
    count = search.candidates(total.shape[2])
    if search.beams.phrases is not None and given.met is not None:
        phrases = search.beams.phrases
        return select_with_phrases(
            given.group, given.met, total, new=new, rules=rules, phrases=phrases, count=count
        )
    if search.form.sample:
        # As many as transformers draws.
        wanted = kept(rules.stop_ids) * search.size
        keys = row_keys(search.settings.seed, given.history.length[:: search.size])
        found = drawn(total, count, wanted, keys)
    else:
        found = likeliest(total, count)
    group, chosen = select(given.group, found, new, rules)
    return group, None, chosen


def _times(tokens: Array, counted: Array, vocabulary: int) -> Array:
    """float32 [B, V], how often ``tokens`` [B, n] has each token where ``counted`` [B, n]."""

    def row(tokens: Array, counted: Array) -> Array:
        return jnp.zeros((vocabulary,)).at[tokens].add(counted.astype(jnp.float32))

    return jax.vmap(row)(tokens, counted)


def _failed(search: Search, state: State) -> Array:
    """bool [B], whether logits of a text that goes on are not finite."""
    bad = search.by_group(~jnp.all(jnp.isfinite(state.logits), axis=1))
    score = state.groups.running.score
    real = state.groups.open[..., None] & (score > -jnp.inf)
    return jnp.any(bad.reshape(score.shape) & real, axis=(0, 2))


def found_of(search: Search, state: State) -> Found:
    """The result of a search that has ended."""
    finished = state.groups.finished
    joined = Finished(*(jnp.concatenate(list(a), axis=1) for a in finished))
    met = state.met
    if met is not None:
        fullest = jnp.argmax(jnp.sum(met[0], axis=2), axis=1)
        met = jnp.take_along_axis(met[0], fullest[:, None, None], axis=1)[:, 0]
    return Found(joined.best(search.form.beams), state.failed, met, state.new)
