"""What was written after prompts, token by token as text, and as JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from llm_jax.decode.results import Completion, TokenScore
from llm_jax.tokenizers.tokenizer import StreamDecoder, Tokenizer


class Written(NamedTuple):
    """What was written after one prompt.

    Attributes:
        prompt: text of the prompt; empty for token ids and for chats.
        ids: its token ids.
        completions: the texts after it.
    """

    prompt: str
    ids: Sequence[int]
    completions: Sequence[Completion]


class Piece(NamedTuple):
    """A token within a text.

    Attributes:
        text: what it adds to the text; empty for a part of a character.
        name: the token as readable text.
        score: how likely it was.
        others: names and log-probabilities of the most likely tokens there.
    """

    text: str
    name: str
    score: TokenScore
    others: tuple[tuple[str, float], ...]


class Spelling:
    """How the tokens of a model are shown.

    Args:
        tokenizer: of the model; None shows ids.
        has_encoder: whether what is written is a text of its own.
    """

    def __init__(self, tokenizer: Tokenizer | None, has_encoder: bool = False) -> None:
        self._tokenizer = tokenizer
        self._has_encoder = has_encoder

    def name(self, id: int) -> str:
        """A token as readable text."""
        known = self._tokenizer is not None and id < self._tokenizer.vocab_size
        return self._tokenizer.piece(id) if known and self._tokenizer else str(id)

    def pieces(self, prompt: Sequence[int], completion: Completion) -> list[Piece]:
        """The scored tokens of a completion after a prompt of ``prompt`` ids. Their texts together
        are the completion's text, but for a stop text within a token.
        """
        texts = list(self._texts(prompt, completion))
        return [
            Piece(
                text=text,
                name=self.name(score.id),
                score=score,
                others=tuple((self.name(id), logprob) for id, logprob in score.top),
            )
            for text, score in zip(texts, completion.scores)
        ]

    def _texts(self, prompt: Sequence[int], completion: Completion) -> Iterator[str]:
        if self._tokenizer is None:
            yield from (f"{id} " for id in completion.ids)
            return
        decoder = StreamDecoder(self._tokenizer, () if self._has_encoder else prompt)
        left = len(completion.text)
        for number, id in enumerate(completion.ids):
            text = decoder.push(id)
            if number == len(completion.ids) - 1:
                text += decoder.flush()
            # A stop text may begin within a token.
            text = text[:left]
            left -= len(text)
            yield text


def as_record(completion: Completion, spelling: Spelling) -> dict[str, Any]:
    """A completion as a JSON object; numbers that are not finite are null."""
    record: dict[str, Any] = {
        "text": completion.text,
        "ids": completion.ids,
        "finish_reason": completion.finish_reason,
        "stop": completion.stop,
        "seed": completion.seed,
        "order": completion.order,
    }
    if completion.scores:
        record["logprobs"] = [_score_record(score, spelling) for score in completion.scores]
    return record


def json_line(record: dict[str, Any]) -> str:
    """A record as one line of JSON, with its line feed."""
    return json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n"


def _score_record(score: TokenScore, spelling: Spelling) -> dict[str, Any]:
    top = [
        {"id": id, "token": spelling.name(id), "logprob": _finite(logprob)}
        for id, logprob in score.top
    ]
    return {
        "id": score.id,
        "token": spelling.name(score.id),
        "logprob": _finite(score.logprob),
        "rank": score.rank,
        "top": top,
    }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
