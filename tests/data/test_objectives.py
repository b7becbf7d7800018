"""Objectives: hidden tokens, spans that were cut out, pairs; each a pure function of a row and its
number.
"""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from builders import write_dataset

from llm_jax.config import DataConfig, override
from llm_jax.data.loading.fingerprints import row_fingerprints
from llm_jax.data.loading.hashing import draws, row_keys
from llm_jax.data.loading.leaves import leaves, map_leaves
from llm_jax.data.loading.loader import Loader, evaluation_batches
from llm_jax.data.loading.transform import AS_STORED
from llm_jax.data.prepare.pipeline import prepare
from llm_jax.data.prepare.train_tokenizer import train_tokenizer
from llm_jax.objectives import make_transform
from llm_jax.objectives.masked import Masked
from llm_jax.objectives.spans import Spans, span_counts
from llm_jax.types import Batch, DataError, Tokens

BOS, EOS, MASK = 2, 3, 4
SENTINELS = tuple(range(5, 45))


def rows(documents: list[list[int]], length: int, count: int) -> Batch:
    """``count`` rows of the same documents, one after the other."""
    tokens, segments = np.zeros((2, count, length), np.int32)
    positions, at = np.zeros((count, length), np.int32), 0
    for n, ids in enumerate(documents, start=1):
        here = slice(at, at + len(ids))
        tokens[:, here], segments[:, here], positions[:, here], at = (
            ids,
            n,
            range(len(ids)),
            at + len(ids),
        )
    return Batch(
        inputs=Tokens(tokens, segments, positions),
        targets=np.roll(tokens, -1, axis=1),
        loss_mask=segments != 0,
    )


def document(first: int, length: int) -> list[int]:
    return [BOS, *range(first, first + length), EOS]


def spans(
    seq_length_of_text: int = 64, rate: float = 0.15, span_length: float = 3.0, seed: int = 0
) -> Spans:
    return Spans(
        seq_length_of_text,
        rate,
        span_length,
        SENTINELS,
        (0, BOS, EOS, MASK, *SENTINELS),
        0,
        EOS,
        0,
        seed,
    )


def test_draws_are_uniform_and_their_streams_apart():
    keys = row_keys(7, np.arange(200))
    one, two = draws(keys, 0, 500), draws(keys, 1, 500)
    assert (
        one.min() >= 0
        and one.max() < 1
        and abs(one.mean() - 0.5) < 0.005
        and abs(one.var() - 1 / 12) < 0.002
    )
    for other in (
        two,
        np.roll(one, 1, axis=0),
        np.roll(one, 1, axis=1),
        draws(row_keys(8, np.arange(200)), 0, 500),
    ):
        assert abs(np.corrcoef(one.ravel(), other.ravel())[0, 1]) < 0.01
    np.testing.assert_array_equal(draws(keys[3:5], 0, 500), one[3:5])
    np.testing.assert_array_equal(draws(keys, 0, 20), one[:, :20])


def test_masking_hides_a_share_by_the_rule_and_nothing_of_control_tokens_or_padding():
    batch = rows([document(100, 60), document(300, 50)], 128, 400)
    objective = Masked(0.15, MASK, (0, BOS, EOS, MASK), 1000, seed=3)
    out = objective(batch, np.arange(400), 128)
    text = (batch.inputs.segment_ids != 0) & ~np.isin(batch.inputs.ids, (BOS, EOS))
    assert not out.loss_mask[~text].any()
    np.testing.assert_array_equal(out.targets, batch.inputs.ids)
    np.testing.assert_array_equal(out.inputs.ids[~out.loss_mask], batch.inputs.ids[~out.loss_mask])
    chosen, told = out.loss_mask.sum(), out.inputs.ids[out.loss_mask]
    assert chosen / text.sum() == pytest.approx(0.15, abs=0.005)
    assert (told == MASK).mean() == pytest.approx(0.8, abs=0.01)
    assert (told == out.targets[out.loss_mask]).mean() == pytest.approx(0.1, abs=0.01)
    others = told[(told != MASK) & (told != out.targets[out.loss_mask])]
    assert (
        len(others) / chosen == pytest.approx(0.1, abs=0.01)
        and others.min() < 50
        and others.max() > 950
    )
    for same in ("segment_ids", "positions"):
        np.testing.assert_array_equal(getattr(out.inputs, same), getattr(batch.inputs, same))
    # Another number of the same row, as in another epoch, hides others.
    assert (objective(batch, np.arange(400) + 400, 128).loss_mask != out.loss_mask).any(
        axis=1
    ).mean() > 0.99
    np.testing.assert_array_equal(objective(batch, np.arange(400), 128).inputs.ids, out.inputs.ids)


def pieces(tokens: np.ndarray, segments: np.ndarray) -> list[list[int]]:
    return [tokens[segments == n].tolist() for n in range(1, int(segments.max()) + 1)]


def put_back(reads: list[int], writes: list[int]) -> list[int]:
    """The document, out of what the encoder reads and the decoder writes."""
    assert writes[-1] == EOS
    marks = [i for i, id in enumerate(writes) if id in SENTINELS] + [len(writes) - 1]
    away = {writes[a]: writes[a + 1 : b] for a, b in itertools.pairwise(marks)}
    assert list(away) == list(SENTINELS[: len(away)]) and all(away.values())
    return [id for read in reads for id in away.get(read, [read])]


def test_spans_put_back_are_the_document():
    documents = [document(100, 30), document(200, 3), document(300, 19)]
    batch = rows(documents, 64, 50)
    out = spans()(batch, np.arange(50), 40)
    seen = []
    for row in range(50):
        reads, writes = (
            pieces(out.encoder.ids[row], out.encoder.segment_ids[row]),
            pieces(out.targets[row], out.inputs.segment_ids[row]),
        )
        assert len(reads) == len(writes) == 3
        whole = [put_back(r, w) for r, w in zip(reads, writes)]
        assert sorted(whole) == sorted(documents)
        seen.append(str(reads))
        for r, w, ids in zip(reads, writes, whole):
            noise, count = span_counts(len(ids) - 2, 0.15, 3.0)
            assert len(w) == noise + count + 1 and len(r) == len(ids) - noise + count
            assert r[0] == BOS and r[-1] == EOS
    assert len(set(seen)) > 45
    np.testing.assert_array_equal(out.loss_mask, out.inputs.segment_ids != 0)
    begins = (out.inputs.positions == 0) & out.loss_mask
    assert (out.inputs.ids[begins] == 0).all()
    moved = out.loss_mask[:, 1:] & ~begins[:, 1:]
    np.testing.assert_array_equal(out.inputs.ids[:, 1:][moved], out.targets[:, :-1][moved])


def test_a_span_is_anywhere_in_its_document():
    out = spans()(rows([document(100, 20)], 64, 2000), np.arange(2000), 16)
    assert span_counts(20, 0.15, 3.0) == (3, 1)
    first = out.targets[:, 1] - 100
    assert np.unique(first).tolist() == list(range(18))
    assert np.bincount(first).min() > 2000 / 18 * 0.6


def test_spans_are_as_many_and_as_long_as_the_reference_makes_them():
    # T5's own arithmetic for 512 tokens: 77 of noise in 26 spans; for 2 one of each; and at least
    # one token stays.
    assert span_counts(512, 0.15, 3.0) == (77, 26)
    assert span_counts(2, 0.15, 3.0) == (1, 1)
    assert span_counts(10, 0.99, 3.0) == (9, 1)
    batch = rows([document(100, 510)], 512, 300)
    out = spans(512)(batch, np.arange(300), 128)
    lengths = []
    for row in range(300):
        writes = pieces(out.targets[row], out.inputs.segment_ids[row])[0]
        marks = [i for i, id in enumerate(writes) if id in SENTINELS] + [len(writes) - 1]
        lengths += np.diff(marks).tolist()
    lengths = np.array(lengths) - 1
    assert (
        lengths.min() == 1
        and lengths.max() > 6
        and lengths.mean() == pytest.approx(76 / 25, abs=0.1)
    )


def test_documents_without_room_are_left_out_on_both_sides_and_others_another_time():
    batch = rows([document(100 + 40 * i, 14) for i in range(8)], 128, 60)
    out = spans(128)(batch, np.arange(60), 20)
    kept = []
    for row in range(60):
        reads, writes = (
            pieces(out.encoder.ids[row], out.encoder.segment_ids[row]),
            pieces(out.targets[row], out.inputs.segment_ids[row]),
        )
        assert len(reads) == len(writes) == 5
        kept += [put_back(r, w)[1] for r, w in zip(reads, writes)]
    counts = np.unique(kept, return_counts=True)[1]
    assert len(counts) == 8 and counts.min() > 20


def test_a_row_of_padding_or_of_single_tokens_stays_empty():
    batch = rows([[BOS, EOS], [77], [BOS, 9, EOS]], 16, 2)
    out = spans(16)(batch, np.arange(2), 8)
    assert not out.loss_mask.any() and not out.encoder.segment_ids.any()


@pytest.fixture(scope="module")
def special(corpus, tmp_path_factory):
    """A tokenizer with a mask and sentinels, and shards made with it."""
    folder = tmp_path_factory.mktemp("special")
    tokenizer = train_tokenizer(
        (str(corpus),), folder / "tok", vocab_size=440, control_symbols=("<mask>",), sentinels=20
    )
    prepare(
        (str(corpus),),
        tokenizer.path.parent,
        folder / "out",
        block_size=64,
        workers=1,
        shard_bytes=30_000,
        validation_fraction=0.2,
    )
    return tokenizer, folder / "out"


def test_special_tokens_of_a_trained_tokenizer_are_found_and_never_encoded(special):
    tokenizer, _ = special
    masked = make_transform(override(DataConfig(), {"objective": "masked"}), 0, tokenizer)
    assert tokenizer.piece(masked.mask_id) == "<mask>" and tokenizer.is_control(masked.mask_id)
    cut = make_transform(
        override(DataConfig(), {"objective": "spans", "objective.encoder_length": 64}), 2, tokenizer
    )
    assert [tokenizer.piece(id) for id in cut.sentinels] == [f"<extra_id_{i}>" for i in range(20)]
    assert (cut.start_token, cut.eos_id) == (2, tokenizer.eos_id)
    text = "a <mask> and <extra_id_3> as text"
    assert tokenizer.decode(tokenizer.encode(text)) == text and not any(
        map(tokenizer.is_control, tokenizer.encode(text))
    )


@pytest.mark.parametrize("objective, length", [("masked", 32), ("spans", 24)])
def test_batches_are_the_same_whatever_the_hosts(special, objective, length):
    tokenizer, shards = special
    made = make_transform(
        override(
            DataConfig(),
            {
                "objective": objective,
                **({"objective.encoder_length": 64} if objective == "spans" else {}),
                "seed": 5,
            },
        ),
        0,
        tokenizer,
    )
    options = {"seq_length": length, "batch_size": 8, "seed": 5, "transform": made}
    whole = Loader([shards, shards], **options, weights=(0.5, 0.5))
    halves = [
        Loader([shards, shards], **options, weights=(0.5, 0.5), rows=rows)
        for rows in ([0, 1, 2, 5], [3, 4, 6, 7])
    ]
    for step in (0, 9):
        batch, parts = whole.batch(step), [half.batch(step) for half in halves]
        order = np.argsort([0, 1, 2, 5, 3, 4, 6, 7])
        together = map_leaves(lambda *a, order=order: np.concatenate(a)[order], *parts)
        for (name, array), (_, other) in zip(leaves(batch), leaves(together), strict=True):
            np.testing.assert_array_equal(array, other, err_msg=name)
        prints = [
            row_fingerprints(b, loader.indices(step))
            for b, loader in zip((batch, *parts), (whole, *halves))
        ]
        np.testing.assert_array_equal(prints[0], np.concatenate(prints[1:])[order])
    assert batch.inputs.ids.shape == (8, length) and batch.loss_mask.any()


def test_a_rows_fingerprint_does_not_depend_on_the_rows_beside_it():
    # A stretch of 512 tokens fills the 104 of a decoder's row exactly; documents of 60 and 448 do
    # not.
    whole, parts = [
        rows(d, 512, 1)
        for d in ([list(range(1000, 1512))], [document(2000, 60), document(3000, 448)])
    ]
    batch = map_leaves(lambda a, b: np.concatenate([a, b, a]), whole, parts)
    made = spans(512)
    out = made(batch, np.arange(3), 104)
    assert out.loss_mask[0].all() and not out.loss_mask[1].all()
    together = row_fingerprints(out, np.arange(3))
    for r in range(3):
        alone = map_leaves(lambda a, r=r: a[r : r + 1], out)
        assert row_fingerprints(alone, np.array([r])) == together[r]


@pytest.mark.parametrize(
    "path",
    [
        "inputs/ids",
        "inputs/segment_ids",
        "inputs/positions",
        "targets",
        "loss_mask",
        "encoder/ids",
        "encoder/segment_ids",
        "encoder/positions",
        "extras/scores",
    ],
)
def test_a_fingerprint_sees_every_array(special, path):
    tokenizer, shards = special
    made = make_transform(
        override(DataConfig(), {"objective": "spans", "objective.encoder_length": 64}), 0, tokenizer
    )
    batch = Loader([shards], seq_length=24, batch_size=4, seed=0, transform=made).batch(0)
    batch = batch._replace(extras={"scores": np.ones((4, 2, 2), np.float32)})
    changed = map_leaves(np.copy, batch)
    array = dict(leaves(changed))[path][2]
    array[1] = ~array[1] if array.dtype == bool else array[1] + 1
    before, after = (row_fingerprints(b, np.arange(4)) for b in (batch, changed))
    assert (before != after).tolist() == [False, False, True, False]


def test_a_fingerprint_knows_which_field_an_array_is_of():
    ids = np.arange(8, dtype=np.int32).reshape(2, 4)
    mask = np.ones((2, 4), bool)
    batch = Batch(inputs=Tokens(ids, ids, ids), targets=ids, loss_mask=mask)
    swapped = [
        batch._replace(inputs=batch.inputs._replace(token_types=ids)),
        batch._replace(inputs=batch.inputs._replace(mutual_ids=ids)),
        batch._replace(encoder=batch.inputs),
        batch._replace(extras={"a": ids}),
        batch._replace(extras={"b": ids}),
    ]
    prints = [row_fingerprints(b, np.arange(2)).tolist() for b in (batch, *swapped)]
    assert len({value for rows in prints for value in rows}) == 2 * len(prints)


def test_evaluation_has_every_row_once_with_the_same_tokens_hidden_each_time(special):
    tokenizer, shards = special
    made = make_transform(override(DataConfig(), {"objective": "masked"}), 0, tokenizer)
    first, again = (
        list(evaluation_batches(shards, seq_length=64, batch_size=16, transform=made))
        for _ in range(2)
    )
    for a, b in zip(first, again):
        np.testing.assert_array_equal(a.inputs.ids, b.inputs.ids)
    other = list(evaluation_batches(shards, seq_length=64, batch_size=8, transform=made))
    options = {"seq_length": 64, "batch_size": 16, "transform": made}
    hosts = [
        b
        for pair in zip(
            *(evaluation_batches(shards, **options, rows=half) for half in (range(8), range(8, 16)))
        )
        for b in pair
    ]
    for parts in (other, hosts):
        together = np.concatenate([b.inputs.ids for b in parts])
        np.testing.assert_array_equal(
            together[: 8 * len(other)],
            np.concatenate([b.inputs.ids for b in first])[: 8 * len(other)],
        )
    plain = list(evaluation_batches(shards, seq_length=64, batch_size=16))
    assert len(plain) == len(first)
    for a, b in zip(first, plain):
        np.testing.assert_array_equal(a.targets, b.inputs.ids)


def test_what_a_tokenizer_lacks_is_named(special, tokenizer, tmp_path):
    with pytest.raises(
        DataError,
        match=r"data.objective is 'masked'.*no <mask> or \[MASK\].*--control-symbols '<mask>'",
    ):
        make_transform(override(DataConfig(), {"objective": "masked"}), 0, tokenizer)
    short = make_transform(
        override(DataConfig(), {"objective": "spans", "objective.encoder_length": 64}), 0, tokenizer
    )
    with pytest.raises(
        DataError, match=r"has 3 spans, and the tokenizer 0 sentinels .*--sentinels 3"
    ):
        Loader([special[1]], seq_length=24, batch_size=2, seed=0, transform=short)
    enough = make_transform(
        override(DataConfig(), {"objective": "spans", "objective.encoder_length": 64}),
        0,
        special[0],
    )
    with pytest.raises(DataError, match=r"encoder_length=48 does not divide block_size=64"):
        Loader(
            [special[1]],
            seq_length=24,
            batch_size=2,
            seed=0,
            transform=enough._replace(encoder_length=48),
        )
    with pytest.raises(DataError, match=r"data.seq_length is 13, .* takes 14 with its sentinels"):
        Loader([special[1]], seq_length=13, batch_size=2, seed=0, transform=enough)
    with pytest.raises(DataError, match="control_symbols=.*'<s>' is there already"):
        train_tokenizer(("nowhere.txt",), tmp_path / "t", control_symbols=("<s>",))


def test_next_token_is_what_a_loader_does_unasked(tmp_path):
    folder = write_dataset(tmp_path / "d", [[9, 23]], 8)
    one, two = (
        Loader([folder], seq_length=8, batch_size=2, seed=0, **more).batch(0)
        for more in ({}, {"transform": AS_STORED})
    )
    np.testing.assert_array_equal(one.inputs.ids, two.inputs.ids)
    assert one.encoder is None
