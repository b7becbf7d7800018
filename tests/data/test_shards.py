"""Shards: readable by tensorflow-datasets, byte-identical for any number of workers, resumable
after SIGKILL, checked when opened.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from builders import document, write_dataset

from llm_jax.data.prepare.pipeline import prepare
from llm_jax.data.prepare.summary import summary
from llm_jax.data.shards import records, store
from llm_jax.data.shards.inspect import inspect_shards
from llm_jax.data.shards.store import ShardReader, read_manifest
from llm_jax.types import DataError

OPTIONS = {"block_size": 64, "shard_bytes": 30_000, "validation_fraction": 0.2}


def sums(folder: Path) -> dict[str, str]:
    return {
        str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in folder.rglob("*")
        if p.is_file()
    }


def blocks_of(folder, split) -> list[records.Block]:
    reader = ShardReader(folder, split)
    return [
        b
        for i, s in enumerate(reader.manifest["shards"][split])
        for b in reader.read(i, range(s["blocks"]))
    ]


def test_tensorflow_datasets_reads_the_same_records(prepared):
    import tensorflow_datasets as tfds

    builder = tfds.builder_from_directory(str(prepared))
    for split in ("train", "validation"):
        theirs, ours = builder.as_data_source(split=split), blocks_of(prepared, split)
        assert len(theirs) == len(ours) == builder.info.splits[split].num_examples > 10
        for i in range(len(ours)):
            record = theirs[i]
            assert record["tokens"].dtype == np.uint16 and record["tokens"].shape == (65,)
            np.testing.assert_array_equal(record["tokens"], ours[i].tokens)
            np.testing.assert_array_equal(record["starts"], ours[i].starts)
            assert record["length"] == ours[i].length


@pytest.mark.parametrize("dtype, vocab_size", [(np.uint16, 65_536), (np.int32, 65_537)])
def test_records_are_what_tensorflow_datasets_would_write(dtype, vocab_size):
    from tensorflow_datasets.core.example_serializer import ExampleSerializer

    assert records.token_dtype(vocab_size) == dtype
    features = store.features({"block_size": 200, "tokenizer": {"vocab_size": vocab_size}})
    serializer = ExampleSerializer(features.get_serialized_info())
    for n, length in ((0, 1), (1, 127), (90, 201)):
        tokens, starts = np.arange(201).astype(dtype), np.arange(n, dtype=np.int32)
        example = features.encode_example({"tokens": tokens, "starts": starts, "length": length})
        record = records.serialize(length=length, starts=starts, tokens=tokens)
        assert record == serializer.get_tf_example(example).SerializeToString(deterministic=True)
        block = records.parse_record(record, np.dtype(dtype))
        np.testing.assert_array_equal(block.tokens, tokens)
        np.testing.assert_array_equal(block.starts, starts)
        assert block.length == length


def test_a_shard_written_out_by_hand(tmp_path):
    # Documents 10 11 12 | 13 | 14 15 16 17 | 18 in blocks of 4: the second begins at 3, the third
    # at 4, the last at 8.
    write_dataset(tmp_path, [[3, 1, 4, 1]], 4)
    found = [(b.tokens.tolist(), b.starts.tolist(), b.length) for b in blocks_of(tmp_path, "train")]
    assert found == [
        ([10, 11, 12, 13, 14], [0, 3, 4], 5),
        ([14, 15, 16, 17, 18], [0, 4], 5),
        ([18, 0, 0, 0, 0], [0], 1),
    ]


def test_every_document_is_in_one_split_once_and_decodes_to_its_text(prepared, tokenizer):
    manifest = read_manifest(prepared)
    texts = []
    for split, counts in manifest["splits"].items():
        documents = []
        for block in blocks_of(prepared, split):
            real = block.tokens[: min(block.length, 64)].tolist()
            for offset, token in enumerate(real):
                if offset in block.starts:
                    documents.append([])
                documents[-1].append(token)
        assert all(ids[0] == tokenizer.bos_id and ids[-1] == tokenizer.eos_id for ids in documents)
        decoded = [tokenizer.decode(ids) for ids in documents]
        assert counts["documents"] == len(decoded) and counts["tokens"] == sum(map(len, documents))
        assert counts["text_bytes"] == sum(len(t.encode()) for t in decoded)
        assert counts["words"] == sum(len(t.split()) for t in decoded)
        texts += decoded
    assert sorted(texts) == sorted(
        document(part * 100 + i).rstrip("\n") for part in range(4) for i in range(100)
    )
    assert (
        manifest["splits"]["validation"]["documents"] > 40 and len(manifest["shards"]["train"]) > 2
    )


def test_files_are_identical_for_any_number_of_workers(prepared, corpus, tokenizer, tmp_path):
    for workers in (2, 3):
        out = tmp_path / str(workers)
        prepare((str(corpus),), tokenizer.path, out, workers=workers, **OPTIONS)
        assert sums(out) == sums(prepared)
    text = (prepared / "manifest.json").read_text()
    assert str(prepared) not in text and "workers" not in text


RUN = """
import sys, time
from llm_jax.data.prepare import pipeline, worker
real = worker.write_unit
def slow(*args):
    time.sleep(0.1)
    return real(*args)
if __name__ == "__main__":
    corpus, tokenizer, out, workers = sys.argv[1:]
    worker.write_unit = slow
    options = {"block_size": 64, "shard_bytes": 10_000, "validation_fraction": 0.2}
    pipeline.prepare((corpus,), tokenizer, out, workers=int(workers), **options)
"""


@pytest.mark.parametrize("workers", [1, 2])
def test_sigkill_and_resume_gives_the_same_bytes_and_redoes_nothing(
    corpus, tokenizer, tmp_path, workers
):
    script, out, whole = tmp_path / "run.py", tmp_path / "out", tmp_path / "whole"
    script.write_text(RUN)
    options = {**OPTIONS, "shard_bytes": 10_000}
    prepare((str(corpus),), tokenizer.path, whole, workers=1, **options)
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    command = [
        sys.executable,
        str(script),
        str(corpus),
        str(tokenizer.path),
        str(out),
        str(workers),
    ]
    process = subprocess.Popen(command, env=env, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while len(list(out.glob("parts/*.json"))) < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    time.sleep(0.5)
    finished = {p.name.removesuffix(".json") for p in out.glob("parts/*.json")}
    assert 3 <= len(finished) < len(list(whole.glob("tokens-*")))
    with pytest.raises(DataError, match="preparation was interrupted: run the same"):
        ShardReader(out, "train")
    with pytest.raises(
        DataError,
        match=r"begun with something else \(block_size: 64 there, 32 now\); pass overwrite",
    ):
        prepare((str(corpus),), tokenizer.path, out, **{**options, "block_size": 32})
    before = {
        name: ((out / name).stat().st_mtime_ns, (out / name).stat().st_ino) for name in finished
    }
    prepare((str(corpus),), tokenizer.path, out, workers=2, **options)
    assert sums(out) == sums(whole)
    assert before == {
        name: ((out / name).stat().st_mtime_ns, (out / name).stat().st_ino) for name in finished
    }


def test_a_complete_folder_is_left_alone_unless_something_changed(
    corpus, tokenizer, tmp_path, capsys
):
    source = tmp_path / "in"
    shutil.copytree(corpus, source)
    out, arguments = tmp_path / "out", ((str(source),), tokenizer.path, tmp_path / "out")
    first = prepare(*arguments, **OPTIONS)
    stamps = {p: p.stat().st_mtime_ns for p in out.rglob("*")}
    assert prepare(*arguments, **OPTIONS) == first == read_manifest(out)
    assert "already complete" in capsys.readouterr().err
    assert stamps == {p: p.stat().st_mtime_ns for p in out.rglob("*")}
    with (source / "part0.jsonl").open("a") as file:
        file.write('{"text": "one more"}\n')
    with pytest.raises(DataError, match=r"sources: .*part0\.jsonl differ\); pass overwrite"):
        prepare(*arguments, **OPTIONS)
    second = prepare(*arguments, **OPTIONS, overwrite=True)
    assert sum(s["documents"] for s in second["splits"].values()) == 401


def test_what_is_dropped_is_counted_by_rule(tokenizer, tmp_path):
    texts = ["a cat sat", "a cat sat  ", " \n ", "x", "birds fly", "a cat sat\r\n"]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in texts))
    (tmp_path / "b.txt").write_bytes(b"rain \xff fell")
    (tmp_path / "c.txt").write_bytes(b"")
    manifest = prepare(
        (str(tmp_path / "*.*"),), tokenizer.path, tmp_path / "out", block_size=8, min_characters=3
    )
    assert manifest["dropped"] == {"empty": 1, "too_short": 1, "duplicate": 2}
    assert manifest["read"] == {"empty_files": 1, "invalid_utf8_repaired": 1, "nulls": 0}
    assert [s["documents"] for s in manifest["sources"]] == [6, 1, 0]
    assert sum(split["documents"] for split in manifest["splits"].values()) == 3
    kept = prepare(
        (str(tmp_path / "a.jsonl"),),
        tokenizer.path,
        tmp_path / "all",
        block_size=8,
        deduplicate=False,
    )
    assert kept["dropped"] == {"empty": 1, "too_short": 0, "duplicate": 0}


def test_what_was_kept_dropped_and_repaired_is_said_at_the_end(tokenizer, tmp_path, capsys):
    texts = ["a cat sat", "a cat sat  ", " \n ", None, "x", "birds fly"]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in texts))
    (tmp_path / "b.txt").write_bytes(b"rain \xff fell \xff")
    (tmp_path / "c.txt").write_bytes(b"")
    arguments = ((str(tmp_path / "*.*"),), tokenizer.path, tmp_path / "out")
    options = {"block_size": 8, "min_characters": 3, "workers": 1, "validation": ()}
    manifest = prepare(*arguments, **options)
    said = capsys.readouterr().err.splitlines()
    train, validation = (manifest["splits"][split] for split in ("train", "validation"))
    assert train["documents"] + validation["documents"] == 3
    expected = [
        (
            f"{tmp_path / 'out'}: 7 documents read: train 2 documents, {train['tokens']} tokens; "
            f"validation 1 document, {validation['tokens']} tokens"
        ),
        (
            f"{tmp_path / 'out'}: dropped 4 documents: empty 2 (1 of them null), too short 1,"
            " duplicate 1; repaired 2 invalid UTF-8 sequences; skipped 1 empty file"
        ),
    ]
    assert said[-2:] == expected
    prepare(*arguments, **options)
    assert capsys.readouterr().err.splitlines() == [
        f"{tmp_path / 'out'}: already complete, nothing to do",
        *expected,
    ]
    assert "nulls: 1" in inspect_shards(tmp_path / "out")


def test_an_older_manifest_without_all_counts_is_read(prepared, tmp_path, capsys):
    manifest = read_manifest(prepared)
    del manifest["read"]["nulls"]
    kept, *rest = summary(manifest)
    assert kept.startswith("400 documents read: train ") and rest == []
    out = tmp_path / "copy"
    shutil.copytree(prepared, out)
    (out / "manifest.json").write_text(json.dumps(manifest))
    assert "nulls: 0" in inspect_shards(out)


def test_without_bos_and_eos(tokenizer, tmp_path):
    (tmp_path / "a.txt").write_text("the cat")
    prepare(
        (str(tmp_path / "a.txt"),),
        tokenizer.path,
        tmp_path / "out",
        block_size=32,
        add_bos=False,
        add_eos=False,
    )
    (block,) = blocks_of(tmp_path / "out", "train")
    assert block.tokens[: block.length].tolist() == tokenizer.encode("the cat")


def test_bad_arguments_are_named(corpus, tokenizer, tmp_path):
    (tmp_path / "blank.txt").write_text("\n \n")
    (tmp_path / "file").write_text("")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("")
    source = (str(corpus),)
    cases = [
        (
            (str(tmp_path / "blank.txt"),),
            tmp_path / "a",
            {},
            r"no documents left after cleaning: dropped empty 1 of 1 documents read",
        ),
        (source, tmp_path / "file" / "out", {}, r"out .* cannot be written \(Not a directory\)"),
        (
            source,
            tmp_path / "other",
            {},
            r"holds other files \(thesis\.tex\); choose another folder",
        ),
        (
            source,
            tmp_path / "other",
            {"overwrite": True},
            r"holds other files \(thesis\.tex\); choose another folder",
        ),
        (source, tmp_path / "b", {"normalization": "x"}, "normalization='x'"),
        (
            source,
            tmp_path / "b",
            {"text_field": "body"},
            r"part0\.jsonl:1: no field 'body'; the fields there are \['text'\]",
        ),
        ((str(tmp_path / "none"),), tmp_path / "b", {}, "no such file or folder"),
    ]
    for inputs, out, options, message in cases:
        with pytest.raises(DataError, match=message):
            prepare(inputs, tokenizer.path, out, **{"workers": 1, **options})
    assert (tmp_path / "other" / "thesis.tex").exists()


def damaged(prepared, tmp_path) -> tuple[Path, Path]:
    out = tmp_path / "copy"
    shutil.copytree(prepared, out)
    return out, out / "tokens-train.array_record-00001"


def test_damage_is_found_when_the_folder_is_opened(prepared, tmp_path):
    out, file = damaged(prepared, tmp_path)
    data = file.read_bytes()
    file.write_bytes(data[:-1000])
    with pytest.raises(
        DataError, match=r"00001' is truncated: \d+ bytes, the manifest says \d+; copy it again"
    ):
        ShardReader(out, "train")
    file.write_bytes(bytes(len(data)))
    with pytest.raises(DataError, match=r"00001'.*(cannot be read|records)"):
        ShardReader(out, "train")
    shutil.copy(out / "tokens-train.array_record-00000", file)
    with pytest.raises(DataError, match=r"00001'"):
        ShardReader(out, "train")
    file.unlink()
    with pytest.raises(DataError, match=r"00001' is missing"):
        ShardReader(out, "train")
    ShardReader(out, "validation")


def test_a_flipped_byte_in_a_record_is_named_when_read(prepared, tmp_path):
    out, file = damaged(prepared, tmp_path)
    data = bytearray(file.read_bytes())
    at = data.find(b"tokens") + 40
    data[at] ^= 0xFF
    file.write_bytes(data)
    reader = ShardReader(out, "train")
    with pytest.raises(DataError, match=r"00001': record unreadable"):
        reader.read(1, range(reader.manifest["shards"]["train"][1]["blocks"]))


def test_manifest_errors(prepared, tmp_path):
    out, _ = damaged(prepared, tmp_path)
    with pytest.raises(DataError, match=r"no split 'test'; there are \['train', 'validation'\]"):
        ShardReader(out, "test")
    manifest = json.loads((out / "manifest.json").read_text())
    (out / "manifest.json").write_text(json.dumps({**manifest, "format_version": 7}))
    with pytest.raises(DataError, match="format version 7, expected 1"):
        ShardReader(out, "train")
    (out / "manifest.json").write_text("{")
    with pytest.raises(DataError, match="damaged manifest"):
        ShardReader(out, "train")
    with pytest.raises(DataError, match=r"no manifest\.json there; see `llm-jax data prepare`"):
        ShardReader(tmp_path, "train")


def test_an_empty_split_says_how_to_get_one(tokenizer, tmp_path):
    (tmp_path / "a.txt").write_text("the cat")
    prepare((str(tmp_path / "a.txt"),), tokenizer.path, tmp_path / "out", block_size=32)
    with pytest.raises(
        DataError, match="split 'validation' is empty; prepare it with a larger validation_fraction"
    ):
        ShardReader(tmp_path / "out", "validation")


def test_inspect_shows_counts_and_borders(prepared):
    text = inspect_shards(prepared, rows=8, seq_length=64)
    manifest = read_manifest(prepared)
    assert f"{manifest['splits']['train']['tokens']:,}" in text
    assert (
        "documents per row" in text and "padding" in text and "dropped documents: empty 0" in text
    )
    assert text.count("--- row") == 8 and "⟦1⟧<s>Story" in text and "</s>" in text
    with pytest.raises(DataError, match="seq_length=33 does not divide"):
        inspect_shards(prepared, seq_length=33)


def test_neither_jax_nor_tensorflow_is_imported(prepared, corpus, tokenizer, tmp_path):
    """grain imports jax where it is installed; with jax absent everything must work, so nothing
    here needs it.
    """
    code = f"""
import sys
from llm_jax.data.prepare.pipeline import prepare
import llm_jax.data, llm_jax.progress, llm_jax.data.loading.loader, llm_jax.data.shards.inspect
import llm_jax.data.corpus.python_docs
late = {{"grain", "tensorflow_datasets", "sentencepiece", "array_record", "rich"}}
assert not late & set(sys.modules), "not lazy"
corpus, tokenizer, out = {str(corpus)!r}, {str(tokenizer.path)!r}, {str(tmp_path / "out")!r}
prepare((corpus,), tokenizer, out, block_size=64, workers=1)
assert "jax" not in sys.modules and "tensorflow" not in sys.modules
sys.modules["jax"] = sys.modules["tensorflow"] = None
from llm_jax.data.loading.loader import Loader
batch = Loader([{str(tmp_path / "out")!r}], seq_length=32, batch_size=4, seed=0).batch(3)
assert batch.inputs.ids.shape == (4, 32)
"""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    subprocess.run(
        [sys.executable, "-c", code], check=True, env=env, stderr=subprocess.PIPE, text=True
    )
