"""Beam search beside transformers': the same texts with the same scores, in five families."""

from __future__ import annotations

import collections
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip(
    "torch", reason="parity tests need the extra: pip install -e '.[parity]'"
)
transformers = pytest.importorskip(
    "transformers", reason="parity tests need the extra: pip install -e '.[parity]'"
)

from reference import PAD, VARIANTS, VOCAB, make

from llm_jax.checkpoints.open_run import Run, open_run
from llm_jax.config.search import BeamConfig
from llm_jax.convert.hf import from_hf
from llm_jax.decode.beams import beam_search
from llm_jax.ops.sampling.settings import Settings, off

pytestmark = pytest.mark.parity

BEAMS, NEW, TOLERANCE = 4, 12, 1e-4
# With a negative length penalty scores are hundreds, of which float32 has no such digit.
UNITS = 4 * np.finfo(np.float32).eps
MODES = {True: "full", False: "heuristic", "never": "never"}


class Pair(NamedTuple):
    """Theirs and ours of one model, with what both read. stop_ids: likely tokens."""

    theirs: Any
    ours: Run
    prompts: list[list[int]]
    stop_ids: list[int]


FAMILIES = ["t5-relu tied", "bart-plain", "marian-swish", "gpt2-tied", "llama-untied"]


@pytest.fixture(scope="module", params=FAMILIES)
def pair(request, tmp_path_factory) -> Pair:
    variant = next(v for v in VARIANTS if v.id == request.param)
    if variant.family == "t5":
        # Their cache has as many layers as the encoder, and fails where the decoder has more.
        variant = variant._replace(settings=variant.settings | {"num_decoder_layers": 2})
    folder: Path = tmp_path_factory.mktemp("beams")
    theirs = make(variant)
    theirs.save_pretrained(folder / "theirs")
    from_hf(folder / "theirs", folder / "ours")
    ours = open_run(folder / "ours")
    rng = np.random.default_rng(3)
    # Their decoders read rows of one length; an encoder's may differ.
    lengths = [9, 5, 12] if ours.config.model.encoder else [7, 7, 7]
    prompts = [rng.integers(PAD + 1, VOCAB, n).tolist() for n in lengths]
    pair = Pair(theirs, ours, prompts, [])
    texts = [text.ids[3:] for row in found(pair, {}) for text in row]
    common = collections.Counter(token for ids in texts for token in ids)
    return pair._replace(stop_ids=[token for token, _ in common.most_common(2)])


CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "length penalty -1, full": {"length_penalty": -1.0, "early_stopping": True},
    "length penalty 0": {"length_penalty": 0.0},
    "length penalty 0.6, never": {"length_penalty": 0.6, "early_stopping": "never"},
    "length penalty 2, never": {"length_penalty": 2.0, "early_stopping": "never"},
    "length penalty 2, full": {"length_penalty": 2.0, "early_stopping": True},
    "two stop tokens": {"stops": 2},
    "no stop token": {"stops": 0},
    "at least 8 new tokens": {"min_new_tokens": 8, "stops": 2},
    "at most 5 new tokens": {"max_new_tokens": 5},
    "no trigram again": {"no_repeat_ngram_size": 3, "stops": 0},
    "no bigram again, penalties": {"no_repeat_ngram_size": 2, "repetition_penalty": 1.4},
    "two texts": {"num_return_sequences": 2},
}
ENCODER_CASES = {
    "forced tokens": {"forced_bos_token_id": 17, "forced_eos_token_id": 0},
    "forced tokens, penalties": {
        "forced_bos_token_id": 17,
        "forced_eos_token_id": 0,
        "repetition_penalty": 1.2,
        "length_penalty": 2.0,
        "no_repeat_ngram_size": 3,
        "min_new_tokens": 4,
    },
}


@pytest.mark.parametrize("name", CASES)
def test_texts_and_scores_are_theirs(name: str, pair: Pair) -> None:
    compare(pair, CASES[name])


@pytest.mark.parametrize("name", ENCODER_CASES)
def test_texts_and_scores_with_forced_tokens_are_theirs(name: str, pair: Pair) -> None:
    if not pair.ours.config.model.encoder:
        pytest.skip("transformers forces first tokens after an encoder only")
    case = dict(ENCODER_CASES[name])
    compare(pair, case | {"forced_eos_token_id": pair.stop_ids[0]})


def compare(pair: Pair, case: dict[str, Any]) -> None:
    ours = found(pair, case)
    for row, expected in zip(ours, their_texts(pair, case), strict=True):
        assert [text.ids for text in row] == [ids for ids, _ in expected]
        scores = [text.score for text in row], [score for _, score in expected]
        np.testing.assert_allclose(*scores, rtol=UNITS, atol=TOLERANCE)


def found(pair: Pair, case: dict[str, Any]):
    config = BeamConfig(
        BEAMS,
        case.get("num_return_sequences", BEAMS),
        length_penalty=case.get("length_penalty", 1.0),
        early_stopping=MODES[case.get("early_stopping", False)],
    )
    return beam_search(
        pair.ours.model,
        pair.ours.params,
        pair.prompts,
        config,
        max_new_tokens=NEW,
        settings=settings(pair, case),
    )


def settings(pair: Pair, case: dict[str, Any]) -> Settings:
    rows = len(pair.prompts)
    given = off(rows, VOCAB)
    stops = pair.stop_ids[: case.get("stops", 1)]
    stop_ids = np.full((rows, 8), -1, np.int32)
    stop_ids[:, : len(stops)] = stops

    def each(value: float, like: Any) -> Any:
        return jnp.full(like.shape, value, like.dtype)

    rules = given.rules
    penalties = given.penalties
    return given._replace(
        rules=rules._replace(
            stop_ids=jnp.asarray(stop_ids),
            min_new=each(case.get("min_new_tokens", 0), rules.min_new),
            max_new=each(case.get("max_new_tokens", NEW), rules.max_new),
            forced_first=each(case.get("forced_bos_token_id", -1), rules.forced_first),
            forced_last=each(case.get("forced_eos_token_id", -1), rules.forced_last),
        ),
        penalties=penalties._replace(
            repetition=each(case.get("repetition_penalty", 1.0), penalties.repetition),
            ngram=each(case.get("no_repeat_ngram_size", 0), penalties.ngram),
        ),
    )


def their_texts(pair: Pair, case: dict[str, Any]) -> list[list[tuple[list[int], float]]]:
    case = {"max_new_tokens": NEW, "num_return_sequences": BEAMS} | case
    stops = pair.stop_ids[: case.pop("stops", 1)]
    width = max(map(len, pair.prompts))
    rows = [row + [PAD] * (width - len(row)) for row in pair.prompts]
    mask = [[1] * len(row) + [0] * (width - len(row)) for row in pair.prompts]
    with torch.no_grad():
        out = pair.theirs.generate(
            torch.tensor(rows),
            attention_mask=torch.tensor(mask),
            do_sample=False,
            num_beams=BEAMS,
            pad_token_id=PAD,
            eos_token_id=stops or None,
            return_dict_in_generate=True,
            output_scores=True,
            **case,
        )
    begin = 1 if pair.theirs.config.is_encoder_decoder else width
    texts = [cut(ids[begin:].tolist(), stops) for ids in out.sequences]
    scored = list(zip(texts, out.sequences_scores.tolist()))
    number = case["num_return_sequences"]
    return [scored[at : at + number] for at in range(0, len(scored), number)]


def cut(ids: list[int], stops: list[int]) -> list[int]:
    """The tokens before the first stop token."""
    places = [at for at, token in enumerate(ids) if token in stops]
    return ids[: places[0]] if places else ids
