"""What tests of constraints share: tokenizers of every kind, and texts that random logits write
under a constraint.
"""

from __future__ import annotations

import contextlib
import functools
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
import pytest
from hf_builders import KINDS, make_folder, make_marian
from words import WORDS

from llm_jax.data.prepare.train_tokenizer import train_tokenizer
from llm_jax.decode import loop
from llm_jax.decode.beams import constrained, front, program
from llm_jax.decode.constrain import CompiledConstraint, GrammarVocabulary, Matchers
from llm_jax.ops.sampling.penalties import repetition_penalty, token_counts
from llm_jax.ops.sampling.tokens import allow_tokens
from llm_jax.ops.sampling.warp import only_best
from llm_jax.tokenizers.import_tokenizer import import_tokenizer
from llm_jax.tokenizers.tokenizer import Tokenizer, continuation

# Ids of the model that its tokenizer does not have.
MORE_IDS = 37
ALL_KINDS = ("sentencepiece", *KINDS, "tiktoken", "marian")
# Those that write every text.
COMPLETE_KINDS = ("sentencepiece", "byte-level", "metaspace", "tiktoken")


@functools.cache
def tokenizer_of(kind: str) -> Tokenizer:
    with tempfile.TemporaryDirectory() as made:
        return _made(kind, Path(made))


def _made(kind: str, folder: Path) -> Tokenizer:
    if kind == "sentencepiece":
        texts = [{"text": f"{word} é 日本 {place}\n"} for place, word in enumerate(WORDS)]
        (folder / "text.jsonl").write_text("\n".join(map(json.dumps, texts)))
        return train_tokenizer((str(folder / "text.jsonl"),), folder / "out", vocab_size=300)
    if kind == "tiktoken":
        return import_tokenizer(_ranks(folder), folder / "out", encoding="gpt2")
    source = make_marian(folder / "s") if kind == "marian" else make_folder(folder / "s", kind)
    return import_tokenizer(source, folder / "out")


def _ranks(folder: Path) -> Path:
    """A file of ranks: all bytes, and some pieces of JSON and words."""
    import base64

    more = [b'{"', b'":', b'",', b'"}', b" the", b"the", b"th", b"an", b"tr", b"ue", b"true"]
    tokens = [*(bytes([byte]) for byte in range(256)), *more]
    path = folder / "ranks.tiktoken"
    lines = [f"{base64.b64encode(token).decode()} {rank}" for rank, token in enumerate(tokens)]
    path.write_text("\n".join(lines) + "\n")
    return path


@functools.cache
def vocabulary_of(kind: str) -> GrammarVocabulary:
    tokenizer = tokenizer_of(kind)
    return GrammarVocabulary(tokenizer, tokenizer.vocab_size + MORE_IDS)


class Text(NamedTuple):
    """What a row has written.

    Attributes:
        ids: its tokens.
        text: their text.
        finished: whether the constraint holds; otherwise the text was cut or came to a dead end.
    """

    ids: list[int]
    text: str
    finished: bool


def random_text(
    compiled: CompiledConstraint,
    rng: np.random.Generator,
    *,
    kind: str,
    begins: bool = False,
    forced: bool = False,
    most: int = 120,
) -> Text:
    """A text of random logits, which favour ends and what closes a value more and more.

    Args:
        compiled: the constraint.
        rng: of the logits.
        kind: of the tokenizer.
        begins: whether the text begins with this row; otherwise it goes on from "x".
        forced: whether tokens of a forced text are taken without a draw.
        most: tokens.
    """
    vocabulary = compiled.vocabulary
    matchers = Matchers(vocabulary, [compiled], [begins])
    closing = _closing(kind)
    ids: list[int] = []
    while not matchers.finished[0] and len(ids) < most:
        ready = matchers.forced()[0] if forced else []
        if not ready:
            allowed = np.flatnonzero(bits(matchers.bitmask()[0]))
            if not len(allowed):
                break
            logits = rng.normal(size=len(allowed)) + closing[allowed] * len(ids) / 10
            ready = [int(allowed[logits.argmax()])]
        matchers.consume([ready])
        ids += ready
    written = [id for id in ids if id not in vocabulary.stop_ids]
    tokenizer = tokenizer_of(kind)
    before = [] if begins else tokenizer.encode("x")
    return Text(written, continuation(tokenizer, before, written), bool(matchers.finished[0]))


@functools.cache
def _closing(kind: str) -> np.ndarray:
    """float [V], 1 for the ends of texts and the tokens that close a string or a list."""
    vocabulary = vocabulary_of(kind)
    closing = np.zeros(vocabulary.words * 32)
    for id in range(vocabulary.count):
        closing[id] = vocabulary.bytes_of(id).strip() in (b'"', b"}", b"]", b'"}')
    closing[list(vocabulary.stop_ids)] = 1
    return closing


def bits(mask: np.ndarray) -> np.ndarray:
    """bool [..., 32 n] of uint32 [..., n]."""
    return np.unpackbits(np.ascontiguousarray(mask).view(np.uint8), axis=-1, bitorder="little") == 1


@contextlib.contextmanager
def few_processors() -> Iterator[None]:
    """Within it no other processors run than the allowed tokens, the repetition penalty and the
    temperature: the others have tests of their own, and take most of the time that a program
    compiles.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "process", _process_few)
        patch.setattr(program, "process", _process_few)
        _forget_programs()
        yield
    _forget_programs()


def _forget_programs() -> None:
    """What was compiled with other processors, of the programs that all generators share."""
    for run in (loop.CHOOSE, front._run, constrained._choose):
        run.clear_cache()


def _process_few(logits, settings, history, *, warp=True, **_):
    logits = allow_tokens(logits.astype(jnp.float32), settings.rules.allowed)
    counts = token_counts(history.ids, history.is_token, logits.shape[1])
    logits = repetition_penalty(logits, counts, settings.penalties.repetition)
    if not warp:
        return logits
    temperature = settings.filters.temperature[:, None]
    logits = logits / jnp.where(temperature == 0, 1.0, temperature)
    return only_best(logits, settings.filters, logits)
