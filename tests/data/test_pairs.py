"""Pairs of texts: packed without loss, split by file, batches in which each pair is a segment of
both sides.
"""

from __future__ import annotations

import json

import numpy as np
import pytest
from builders import MORE_WORDS as WORDS

from llm_jax.config import DataConfig, override
from llm_jax.data.loading.loader import Loader, evaluation_batches
from llm_jax.data.prepare.pipeline import prepare
from llm_jax.data.shards.inspect import inspect_shards
from llm_jax.data.shards.pairs import PackedPairs, Pair, RowShape, pack_pairs, pairs_to_batch
from llm_jax.data.shards.store import read_manifest
from llm_jax.objectives import make_transform
from llm_jax.types import DataError

T, S = 48, 64


def pair(number: int) -> dict[str, str]:
    rng = np.random.default_rng(number)
    return {
        name: " ".join(rng.choice(WORDS, int(rng.integers(1, 14)))) + f" {number}"
        for name in ("de", "en")
    }


def write_jsonl(path, records) -> str:
    path.write_text("".join(json.dumps(r) + "\n" for r in records))
    return str(path)


@pytest.fixture(scope="module")
def made(tokenizer, tmp_path_factory):
    """Training pairs 0 to 299, held out 1000 to 1029 and one of the training pairs."""
    folder = tmp_path_factory.mktemp("pairs")
    train = write_jsonl(folder / "train.jsonl", map(pair, range(300)))
    held = write_jsonl(folder / "held.jsonl", [*map(pair, range(1000, 1030)), pair(7)])
    options = {
        "text_field": "en",
        "encoder_field": "de",
        "block_size": T,
        "encoder_block_size": S,
        "workers": 1,
    }
    manifest = prepare(
        (train,),
        tokenizer.path.parent,
        folder / "out",
        validation=(held,),
        shard_bytes=9000,
        **options,
    )
    return folder / "out", manifest


def loaded(made, tokenizer, split="train", **options) -> Loader:
    transform = make_transform(
        override(DataConfig(), {"objective": "pairs", "objective.encoder_length": S}), 1, tokenizer
    )
    return Loader(
        [made[0]], split=split, seq_length=T, batch_size=4, seed=0, transform=transform, **options
    )


def pairs_of(batch, tokenizer) -> list[tuple[str, str]]:
    out = []
    for row in range(len(batch.inputs.ids)):
        for n in range(1, batch.inputs.segment_ids[row].max(initial=0) + 1):
            reads = batch.encoder.ids[row][batch.encoder.segment_ids[row] == n].tolist()
            writes = batch.targets[row][batch.inputs.segment_ids[row] == n].tolist()
            assert (reads[0], reads[-1], writes[-1]) == (
                tokenizer.bos_id,
                tokenizer.eos_id,
                tokenizer.eos_id,
            )
            assert batch.inputs.ids[row][batch.inputs.segment_ids[row] == n].tolist() == [
                1,
                *writes[:-1],
            ]
            out.append((tokenizer.decode(reads), tokenizer.decode(writes)))
    return out


def test_every_pair_comes_once_an_epoch_and_held_out_files_are_the_other_split(made, tokenizer):
    folder, manifest = made
    loader = loaded(made, tokenizer, shuffle=False)
    seen = [
        p
        for row in range(len(loader.components[0]))
        for p in pairs_of(loader.components[0].batch([row]), tokenizer)
    ]
    expected = [(p["de"], p["en"]) for p in map(pair, range(300))]
    assert sorted(seen) == sorted(expected) and len(manifest["shards"]["train"]) > 1
    first = [
        p for step in range(loader.steps_per_epoch) for p in pairs_of(loader.batch(step), tokenizer)
    ]
    assert first[: len(seen)] == seen
    transform = make_transform(
        override(DataConfig(), {"objective": "pairs", "objective.encoder_length": S}), 1, tokenizer
    )
    held = list(evaluation_batches(folder, seq_length=T, batch_size=4, transform=transform))
    found = [p for batch in held for p in pairs_of(batch, tokenizer)]
    assert sorted(found) == sorted((p["de"], p["en"]) for p in map(pair, range(1000, 1030)))
    assert manifest["dropped"] == {"empty": 0, "too_short": 0, "duplicate": 1, "too_long": 0}
    counted = manifest["splits"]["train"]
    assert counted["documents"] == 300 and counted["tokens"] == sum(
        len(tokenizer.encode(en)) + 1 for _, en in expected
    )
    assert counted["encoder_tokens"] == sum(len(tokenizer.encode(de)) + 2 for de, _ in expected)


def test_rows_are_nearly_full(made):
    _, manifest = made
    counted = manifest["splits"]["train"]
    rows = counted["blocks"]
    assert max(counted["tokens"] / (rows * T), counted["encoder_tokens"] / (rows * S)) > 0.85


def test_a_batch_written_out_by_hand():
    record = PackedPairs(
        np.array([5, 6, 3, 7, 3, 0]),
        np.array([0, 3, 5], np.int32),
        np.array([8, 3, 9, 10, 3, 0, 0]),
        np.array([0, 2, 5], np.int32),
    )
    batch = pairs_to_batch([record], start_token=1)
    assert batch.inputs.ids.tolist() == [[1, 8, 1, 9, 10, 0, 0]]
    assert batch.targets.tolist() == [[8, 3, 9, 10, 3, 0, 0]]
    assert batch.loss_mask.tolist() == [[True] * 5 + [False] * 2]
    assert batch.inputs.segment_ids.tolist() == [[1, 1, 2, 2, 2, 0, 0]]
    assert batch.inputs.positions.tolist() == [[0, 1, 0, 1, 2, 0, 0]]
    assert batch.encoder.ids.tolist() == [[5, 6, 3, 7, 3, 0]]
    assert batch.encoder.segment_ids.tolist() == [[1, 1, 1, 2, 2, 0]]
    assert batch.encoder.positions.tolist() == [[0, 1, 2, 0, 1, 0]]


def test_an_empty_side_moves_no_other_pair():
    record = PackedPairs(
        np.array([5, 6, 7, 0]),
        np.array([0, 0, 2, 3]),
        np.array([8, 3, 9, 3, 10, 3]),
        np.array([0, 2, 4, 6]),
    )
    batch = pairs_to_batch([record], start_token=1)
    assert batch.encoder.segment_ids.tolist() == [[2, 2, 3, 0]]
    assert batch.inputs.segment_ids.tolist() == [[1, 1, 2, 2, 3, 3]]


def test_a_shard_without_a_pair_that_fits_leaves_the_others_readable(tokenizer, tmp_path):
    import tensorflow_datasets as tfds

    long = [{"de": "mat " * 300 + str(n), "en": "cat"} for n in range(4)]
    file = write_jsonl(
        tmp_path / "a.jsonl", [*map(pair, range(40)), *long, *map(pair, range(40, 80))]
    )
    options = {
        "text_field": "en",
        "encoder_field": "de",
        "block_size": T,
        "workers": 1,
        "shard_bytes": 1500,
        "validation_fraction": 0.0,
    }
    manifest = prepare((file,), tokenizer.path.parent, tmp_path / "out", **options)
    shards = manifest["shards"]["train"]
    assert 0 in [s["blocks"] for s in shards[:-1]] and manifest["dropped"]["too_long"] >= 4
    source = tfds.builder_from_directory(str(tmp_path / "out")).as_data_source(split="train")
    rows = sum(s["blocks"] for s in shards)
    assert len(source) == rows and source[rows - 1]["tokens"].shape == (T,)
    transform = make_transform(
        override(DataConfig(), {"objective": "pairs", "objective.encoder_length": T}), 1, tokenizer
    )
    loader = Loader(
        [tmp_path / "out"], seq_length=T, batch_size=1, seed=0, transform=transform, shuffle=False
    )
    found = [p for step in range(rows) for p in pairs_of(loader.batch(step), tokenizer)]
    assert len(found) == manifest["splits"]["train"]["documents"] == len(set(found))


def test_what_is_held_out_is_never_trained_on(tokenizer, tmp_path):
    train = write_jsonl(tmp_path / "a.jsonl", [*map(pair, range(9)), pair(3)])
    held = write_jsonl(tmp_path / "b.jsonl", [pair(3), pair(11)])
    options = {
        "text_field": "en",
        "encoder_field": "de",
        "block_size": T,
        "workers": 1,
        "deduplicate": False,
    }
    manifest = prepare(
        (train,), tokenizer.path.parent, tmp_path / "out", validation=(held,), **options
    )
    assert [manifest["splits"][s]["documents"] for s in ("train", "validation")] == [10, 1]
    with pytest.raises(DataError, match="validation has .*a.jsonl', which input has too"):
        prepare(
            (train,),
            tokenizer.path.parent,
            tmp_path / "c",
            validation=(f"{tmp_path}/./a.jsonl",),
            **options,
        )
    same = write_jsonl(tmp_path / "c.jsonl", [pair(3)])
    with pytest.raises(
        DataError,
        match="c.jsonl'.: no document of it is left that input does not have too; .*--validation",
    ):
        prepare((train,), tokenizer.path.parent, tmp_path / "d", validation=(same,), **options)


def test_packing_loses_and_overfills_nothing():
    rng = np.random.default_rng(0)
    pairs = [
        Pair([n] * int(rng.integers(1, 30)), [n] * int(rng.integers(1, 41))) for n in range(2000)
    ]
    rows = list(pack_pairs(pairs, RowShape(30, 40)))
    assert sorted(p.tokens[0] for row in rows for p in row) == list(range(2000))
    assert all(
        sum(len(p.encoder_tokens) for p in row) <= 30 and sum(len(p.tokens) for p in row) <= 40
        for row in rows
    )


def test_files_are_the_same_for_any_number_of_workers_and_a_second_run_finds_them(made, tokenizer):
    folder, _ = made
    options = {
        "text_field": "en",
        "encoder_field": "de",
        "block_size": T,
        "encoder_block_size": S,
        "shard_bytes": 9000,
    }
    inputs, held = (str(folder.parent / "train.jsonl"),), (str(folder.parent / "held.jsonl"),)
    again = folder.parent / "again"
    prepare(inputs, tokenizer.path.parent, again, validation=held, workers=2, **options)
    for file in folder.glob("*"):
        if file.is_file():
            assert file.read_bytes() == (again / file.name).read_bytes(), file.name
    assert prepare(
        inputs, tokenizer.path.parent, again, validation=held, **options
    ) == read_manifest(folder)
    text = {name: value for name, value in options.items() if "encoder" not in name}
    with pytest.raises(DataError, match="encoder_field: 'de' there, None now"):
        prepare(inputs, tokenizer.path.parent, again, validation=held, **text)
    with pytest.raises(DataError, match="encoder_block_size: 64 there, 32 now"):
        prepare(
            inputs,
            tokenizer.path.parent,
            again,
            validation=held,
            **options | {"encoder_block_size": 32},
        )


def test_tensorflow_datasets_reads_them(made):
    import tensorflow_datasets as tfds

    source = tfds.builder_from_directory(str(made[0])).as_data_source(split="train")
    record = source[0]
    assert set(record) == {"tokens", "starts", "encoder_tokens", "encoder_starts"}
    assert record["tokens"].shape == (T,) and record["encoder_tokens"].shape == (S,)
    assert record["starts"][0] == 0 and len(record["starts"]) == len(record["encoder_starts"])


def test_pairs_too_long_for_a_row_are_counted(tokenizer, tmp_path):
    file = write_jsonl(
        tmp_path / "a.jsonl",
        [{"de": "mat " * 60, "en": "cat"}, {"de": "cat", "en": "mat " * 60}, *map(pair, range(20))],
    )
    options = {"text_field": "en", "encoder_field": "de", "block_size": T, "workers": 1}
    manifest = prepare(
        (file,), tokenizer.path.parent, tmp_path / "out", validation_fraction=0, **options
    )
    assert manifest["dropped"]["too_long"] == 2 and manifest["splits"]["train"]["documents"] == 20
    assert manifest["encoder_block_size"] == T
    shown = inspect_shards(tmp_path / "out", rows=1)
    assert (
        "too long 2" in shown
        and "⟦1⟧" in shown
        and pair(0)["en"] in shown
        and pair(0)["de"] in shown
    )
    with pytest.raises(DataError, match="no documents left after cleaning: dropped too_long 1"):
        long = write_jsonl(tmp_path / "b.jsonl", [{"de": "mat " * 60, "en": "cat"}])
        prepare((long,), tokenizer.path.parent, tmp_path / "none", **options)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"encoder_field": "fr"}, r"no field 'fr'; the fields there are \['de', 'en'\]"),
        ({"encoder_block_size": 9}, "encoder_block_size=9 without encoder_field.*--encoder-field"),
        (
            {"encoder_field": "de", "add_bos": False},
            "add_bos=False and add_eos=True with encoder_field='de'; they are for single texts",
        ),
        (
            {"validation_fraction": 0.1, "validation": ("x.jsonl",)},
            r"validation_fraction=0.1 and validation=\['x.jsonl'\]; give one",
        ),
        ({"validation": ("{}/a.jsonl",)}, "validation has .*a.jsonl', which input has too"),
    ],
)
def test_what_cannot_be_is_named(options, message, tokenizer, tmp_path):
    file = write_jsonl(tmp_path / "a.jsonl", map(pair, range(9)))
    if "{}/a.jsonl" in options.get("validation", ()):
        options = {"validation": (file,)}
    with pytest.raises(DataError, match=message):
        prepare(
            (file,), tokenizer.path.parent, tmp_path / "out", text_field="en", workers=1, **options
        )


def test_plain_text_has_no_pairs(tokenizer, tmp_path):
    (tmp_path / "a.txt").write_text("text")
    with pytest.raises(
        DataError,
        match=(
            r"a.txt': plain text has no fields \['text', 'de'\]; give pairs of texts as .jsonl or"
            r" .parquet"
        ),
    ):
        prepare(
            (str(tmp_path / "a.txt"),),
            tokenizer.path.parent,
            tmp_path / "out",
            encoder_field="de",
            workers=1,
        )


def test_parquet_has_the_same_pairs(tokenizer, tmp_path):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    records = list(map(pair, range(30)))
    pq.write_table(
        pa.table({name: [r[name] for r in records] for name in ("de", "en")}),
        tmp_path / "a.parquet",
    )
    options = {
        "text_field": "en",
        "encoder_field": "de",
        "block_size": T,
        "validation_fraction": 0.0,
        "workers": 1,
    }
    one = prepare((str(tmp_path / "a.parquet"),), tokenizer.path.parent, tmp_path / "p", **options)
    two = prepare(
        (write_jsonl(tmp_path / "a.jsonl", records),),
        tokenizer.path.parent,
        tmp_path / "j",
        **options,
    )
    assert one["shards"] == two["shards"]


def test_the_wrong_kind_of_shards_or_lengths_are_named(made, prepared, tokenizer):
    with pytest.raises(
        DataError, match="holds pairs, and data.objective wants text; set data.objective to pairs"
    ):
        Loader([made[0]], seq_length=T, batch_size=4, seed=0)
    transform = make_transform(
        override(DataConfig(), {"objective": "pairs", "objective.encoder_length": S}), 1, tokenizer
    )
    with pytest.raises(
        DataError,
        match="holds text, and data.objective wants pairs; prepare pairs with --encoder-field",
    ):
        Loader([prepared], seq_length=T, batch_size=4, seed=0, transform=transform)
    with pytest.raises(
        DataError,
        match=(
            r"data.seq_length is 24, .* rows of 48 \(block_size\); set it to that, or"
            r" .*--block-size 24"
        ),
    ):
        Loader([made[0]], seq_length=24, batch_size=4, seed=0, transform=transform)
    with pytest.raises(
        DataError,
        match=r"data.objective.encoder_length is 48, .* rows of 64 \(encoder_block_size\)",
    ):
        Loader(
            [made[0]],
            seq_length=T,
            batch_size=4,
            seed=0,
            transform=transform._replace(encoder_length=48),
        )


def test_nulls_of_either_side_are_dropped_as_empty_and_said(tokenizer, tmp_path, capsys):
    records = [
        *map(pair, range(4)),
        {"de": None, "en": "a cat"},
        {"de": "a mat", "en": None},
        {"de": "", "en": "birds"},
    ]
    options = {
        "text_field": "en",
        "encoder_field": "de",
        "block_size": T,
        "workers": 1,
        "validation_fraction": 0.0,
    }
    manifest = prepare(
        (write_jsonl(tmp_path / "a.jsonl", records),),
        tokenizer.path.parent,
        tmp_path / "out",
        **options,
    )
    assert manifest["dropped"] == {"empty": 3, "too_short": 0, "duplicate": 0, "too_long": 0}
    assert manifest["read"]["nulls"] == 2
    counts = manifest["splits"]["train"]
    said = capsys.readouterr().err
    kept = (
        f"train 4 documents, {counts['tokens']} tokens and {counts['encoder_tokens']} tokens for"
        " the encoder; validation 0 documents"
    )
    assert f"out: 7 documents read: {kept}" in said
    assert "dropped 3 documents: empty 3 (2 of them null)" in said


def test_rows_of_pairs_are_inspected_in_their_own_length_only(made):
    with pytest.raises(
        DataError,
        match=(
            r"seq_length=24, .* packed into rows of 48 tokens; leave out seq_length"
            r" \(--seq-length\)"
        ),
    ):
        inspect_shards(made[0], seq_length=24)
