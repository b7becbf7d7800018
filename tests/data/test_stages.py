"""Stages of preparing data: a document in, a document or a drop out; drops are counted by rule."""

from __future__ import annotations

import pickle
from collections import Counter
from pathlib import Path

import pytest

from llm_jax.data.corpus.clean import CleanOptions
from llm_jax.data.corpus.counts import ReadCounts
from llm_jax.data.corpus.dedup import Assigned, document_key, with_key
from llm_jax.data.corpus.document import Document
from llm_jax.data.prepare.pipeline import prepare
from llm_jax.data.prepare.stages import (
    Clean,
    Drop,
    DropDuplicates,
    DropShort,
    DropUnfit,
    drop_empty,
    run_stages,
)
from llm_jax.data.prepare.train_tokenizer import train_tokenizer
from llm_jax.data.prepare.units import Unit, cut_units, part_path
from llm_jax.data.shards.pairs import Pair
from llm_jax.data.shards.store import read_manifest


def text(*texts, source="f"):
    return Document(texts, source)


CLEAN = Clean(CleanOptions(lower_case=True))
DOCUMENT_STAGES = (CLEAN, drop_empty, DropShort(3))


@pytest.mark.parametrize(
    "stage, document, outcome",
    [
        (CLEAN, text("Ab\r\nC "), text("ab\nc")),
        (CLEAN, text("A", " B ", source="g"), text("a", " b", source="g")),
        (CLEAN, text(" \n"), text("")),
        (drop_empty, text("a"), text("a")),
        (drop_empty, text("a", ""), Drop("empty")),
        (DropShort(3), text("abc"), text("abc")),
        (DropShort(3), text("abcd", "ab"), Drop("too_short")),
        (DropUnfit(2, 3), Pair([5, 6], [7, 8, 9]), Pair([5, 6], [7, 8, 9])),
        (DropUnfit(2, 3), Pair([5, 6, 7], [7]), Drop("too_long")),
        (DropUnfit(2, 3), Pair([5], [7, 8, 9, 1]), Drop("too_long")),
        (DropUnfit(2, 3), Pair([], [7, 8, 9, 1]), Drop("empty")),
    ],
)
def test_a_stage_returns_a_document_or_a_drop(stage, document, outcome):
    assert stage(document) == outcome
    # As it arrives in a process of another engine.
    assert pickle.loads(pickle.dumps(stage))(document) == outcome


def test_drops_are_counted_by_the_rule_of_the_first_stage_that_drops():
    dropped = Counter(empty=1)
    documents = map(text, ["One", " ", "ab", "two", "", "ONE"])
    kept = list(run_stages(documents, DOCUMENT_STAGES, dropped))
    assert kept == [text("one"), text("two"), text("one")]
    assert dropped == {"empty": 3, "too_short": 1}


def test_stages_run_as_documents_are_taken():
    dropped = Counter()
    kept = run_stages(map(text, ["", "a", "", "b"]), [drop_empty], dropped)
    assert next(kept) == text("a") and dropped == {"empty": 1}
    assert next(kept) == text("b") and dropped == {"empty": 2}


@pytest.mark.parametrize(
    "everywhere, held_out, kept, duplicates",
    [
        (True, (), "abc", 3),
        (False, (), "abacba", 0),
        # Of source g, "a" and "b" have been seen in f.
        (False, ("g",), "abac", 2),
        (True, ("g",), "abc", 3),
    ],
)
def test_the_first_document_of_each_key_is_kept(everywhere, held_out, kept, duplicates):
    documents = [text(t) for t in "aba"] + [text(t, source="g") for t in "cba"]
    dropped = Counter()
    stage = DropDuplicates(everywhere, held_out)
    found = run_stages(map(with_key, documents), [stage], dropped)
    assert "".join(keyed.document.text for keyed in found) == kept
    assert dropped == ({"duplicate": duplicates} if duplicates else {})


def test_a_key_is_of_all_texts_and_not_of_the_source():
    assert document_key(text("a")) == document_key(text("a", source="g"))
    keys = [document_key(text(*texts)) for texts in (("abc",), ("ab", "c"), ("a", "bc"))]
    assert len(set(keys)) == 3 and all(len(key) == 16 for key in keys)
    # blake2b("abc") in 16 bytes, as other implementations of RFC 7693 compute it.
    assert keys[0].hex() == "cf4ab791c62b8d2b2109c90275287816"


def test_a_unit_ends_with_the_document_that_fills_it():
    counts = ReadCounts()

    def documents():
        for number, (split, words) in enumerate(
            [("train", "aa"), ("validation", "b"), ("train", "é"), ("train", "cc"), ("train", "d")]
        ):
            counts.bytes_read = 10 * (number + 1)
            yield Assigned(text(words), split)

    units = list(cut_units(documents(), 3, counts))
    assert units == [
        Unit("train", 0, [("aa",), ("é",)], 30),
        Unit("train", 1, [("cc",), ("d",)], 20),
        Unit("validation", 0, [("b",)], 0),
    ]
    name = "out/parts/tokens-train.array_record-00001.json"
    assert part_path(Path("out"), units[1]) == Path(name)


def test_a_folder_is_overwritten_with_another_tokenizer_in_the_same_process(corpus, tmp_path):
    source = tmp_path / "a.txt"
    source.write_text("the cat sat on the mat and the bird sang")
    out = tmp_path / "out"
    tokens = []
    for size in (300, 420):
        tokenizer = train_tokenizer((str(corpus),), tmp_path / f"tok{size}", vocab_size=size)
        manifest = prepare((str(source),), tokenizer.path, out, block_size=8, overwrite=True)
        assert manifest == read_manifest(out)
        tokens.append(manifest["splits"]["train"]["tokens"])
        assert tokens[-1] == len(tokenizer.encode(source.read_text())) + 2
    assert tokens[0] > tokens[1]
