"""Imported tokenizers: what a folder declares is what is used, text survives, every bad file is
refused by name.
"""

from __future__ import annotations

import base64
import hashlib
import itertools
import json
import random
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip(
    "tokenizers", reason="imported tokenizers need the extra: pip install -e '.[hf]'"
)

from hf_builders import BERT, CHATML, KINDS, SPECIAL, make_folder, make_marian, make_tokenizer
from mixed_text import mixed_lines

from llm_jax.data.prepare.pipeline import prepare
from llm_jax.data.shards.inspect import inspect_shards
from llm_jax.tokenizers.export_tokenizer import export_tokenizer
from llm_jax.tokenizers.import_tokenizer import (
    Specials,
    import_tokenizer,
    source_of_json,
    write_tokenizer,
)
from llm_jax.tokenizers.open_tokenizer import open_tokenizer, tokenizer_files
from llm_jax.tokenizers.sentencepiece_tokenizer import SentencePieceTokenizer
from llm_jax.tokenizers.tokenizer import StreamDecoder, Tokenizer
from llm_jax.types import DataError


@pytest.fixture(scope="session")
def sources(tmp_path_factory) -> dict[str, Path]:
    """A model folder of each kind."""
    root = tmp_path_factory.mktemp("hf")
    return {kind: make_folder(root / kind, kind) for kind in KINDS}


@pytest.fixture(scope="session")
def imported(sources, tmp_path_factory) -> dict[str, Tokenizer]:
    root = tmp_path_factory.mktemp("imported")
    return {kind: import_tokenizer(source, root / kind) for kind, source in sources.items()}


@pytest.fixture
def source(sources, tmp_path) -> Path:
    """A folder of the byte-level kind that a test may change."""
    return shutil.copytree(sources["byte-level"], tmp_path / "source")


def change(folder: Path, name: str, **values: Any) -> None:
    path = folder / name
    path.write_text(
        json.dumps({**(json.loads(path.read_text()) if path.exists() else {}), **values})
    )


# --- what the files say is what is used


@pytest.mark.parametrize(
    ("kind", "bos", "eos", "pad", "unk", "add_bos", "add_eos"),
    [
        ("byte-level", "<s>", "</s>", "<pad>", "<unk>", True, False),
        ("metaspace", "<s>", "</s>", "<pad>", "<unk>", True, False),
        ("wordpiece", "[CLS]", "[SEP]", "[PAD]", "[UNK]", True, True),
        ("unigram", "<s>", "</s>", "<pad>", "<unk>", False, True),
    ],
)
def test_special_tokens_and_where_they_go(imported, kind, bos, eos, pad, unk, add_bos, add_eos):
    t = imported[kind]
    assert [t.piece(id) for id in (t.bos_id, t.eos_id, t.pad_id, t.unk_id)] == [bos, eos, pad, unk]
    assert (t.add_bos, t.add_eos, t.eos_ids) == (add_bos, add_eos, (t.eos_id,))
    assert all(t.is_control(id) for id in (t.bos_id, t.eos_id, t.pad_id)) and not t.is_control(
        t.encode("the")[0]
    )
    assert t.fingerprint == hashlib.sha256((t.path / "tokenizer.json").read_bytes()).hexdigest()
    assert open_tokenizer(t.path).fingerprint == t.fingerprint


def test_generation_stops_at_every_id_that_is_declared(source, tmp_path):
    change(source, "generation_config.json", eos_token_id=[5, 2, 4])
    assert import_tokenizer(source, tmp_path / "a").eos_ids == (2, 5, 4)
    change(source, "tokenizer_config.json", eos_token="<|im_end|>")
    assert import_tokenizer(source, tmp_path / "b").eos_ids == (5, 2, 4)
    # Each file has a word: config.json and its text_config too.
    change(source, "generation_config.json", eos_token_id=4)
    change(source, "config.json", eos_token_id=[2, 4], text_config={"eos_token_id": 7})
    t = import_tokenizer(source, tmp_path / "c")
    assert t.eos_ids == (5, 4, 2, 7) == open_tokenizer(t.path).eos_ids and t.eos_id == 5


def test_an_end_that_is_no_id_is_refused_before_anything_is_written(source, tmp_path):
    change(source, "config.json", eos_token_id=50256)
    with pytest.raises(
        DataError,
        match=(
            r"eos_ids would be \(2, 50256\), with a vocabulary of 1,200 ids; fix the file that"
            r" declares it"
        ),
    ):
        import_tokenizer(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    change(source, "config.json", vocab_size=50304)
    assert import_tokenizer(source, tmp_path / "out").eos_ids == (2, 50256)


def test_the_token_that_ends_an_answer_in_the_chat_template_ends_generation(source, tmp_path):
    change(source, "tokenizer_config.json", chat_template=CHATML)
    t = import_tokenizer(source, tmp_path / "a")
    assert [t.piece(id) for id in t.eos_ids] == ["</s>", "<|im_end|>"] and t.eos_id == 2
    # Not where it is ordinary text, as <|end|> is in this vocabulary.
    change(source, "tokenizer_config.json", chat_template=CHATML.replace("<|im_end|>", "<|end|>"))
    assert import_tokenizer(source, tmp_path / "b").eos_ids == (2,)


def test_a_record_from_before_is_opened_as_it_is(source, tmp_path):
    """Its eos_ids are those that were found then."""
    change(source, "tokenizer_config.json", chat_template=CHATML)
    t = import_tokenizer(source, tmp_path / "a")
    change(t.path, "imported.json", eos_ids=[2])
    assert open_tokenizer(t.path).eos_ids == (2,)


@pytest.mark.parametrize(
    ("config", "generation", "model", "bos", "eos"),
    [
        # A name that is null says that there is none; one that is not there is looked for by id.
        ({"bos_token": None, "eos_token": "</s>"}, {"bos_token_id": 4}, {}, -1, (2,)),
        ({}, {"bos_token_id": 4}, {"bos_token_id": 5, "eos_token_id": 2}, 4, (2,)),
        (
            {"eos_token": {"__type": "AddedToken", "content": "<pad>"}},
            {},
            {"bos_token_id": None},
            -1,
            (3,),
        ),
    ],
)
def test_ids_that_only_other_files_give(source, tmp_path, config, generation, model, bos, eos):
    (source / "tokenizer_config.json").write_text(json.dumps(config))
    change(source, "generation_config.json", **generation)
    change(source, "config.json", **model)
    change(source, "tokenizer.json", post_processor=None)
    t = import_tokenizer(source, tmp_path / "out")
    assert (t.bos_id, t.eos_ids, t.add_bos, t.add_eos) == (bos, eos, False, False)


def test_a_class_that_puts_the_first_token_says_so_by_a_flag(source, tmp_path):
    level = {
        "type": "ByteLevel",
        "add_prefix_space": True,
        "trim_offsets": False,
        "use_regex": True,
    }
    change(source, "tokenizer.json", post_processor=level)
    assert not import_tokenizer(source, tmp_path / "a").add_bos
    change(source, "tokenizer_config.json", add_bos_token=True)
    assert import_tokenizer(source, tmp_path / "b").add_bos


def test_a_padded_embedding_has_ids_that_stand_for_nothing(source, tmp_path):
    change(source, "config.json", vocab_size=1280)
    t = import_tokenizer(source, tmp_path / "out")
    assert t.vocab_size == 1280 and t.decode([1279, *t.encode("the cat"), 1200]) == "the cat"
    assert t.is_control(1279) and t.piece(1279) == "<unused 1279>"
    with pytest.raises(
        DataError, match="token ids from 1280 to 1280; this tokenizer has ids 0 to 1279"
    ):
        t.decode([1280])


def test_tokens_declared_outside_of_the_file_are_added_and_change_the_fingerprint(source, tmp_path):
    plain = import_tokenizer(source, tmp_path / "a")
    added = {
        "content": "<think>",
        "lstrip": False,
        "normalized": False,
        "rstrip": False,
        "single_word": False,
        "special": False,
    }
    change(
        source,
        "tokenizer_config.json",
        added_tokens_decoder={"1200": added},
        extra_special_tokens=["<tool>"],
    )
    t = import_tokenizer(source, tmp_path / "b")
    assert t.encode("a<think>b<tool>") == [*plain.encode("a"), 1200, *plain.encode("b"), 1201]
    assert t.decode(t.encode("a<think>b<tool>")) == "a<think>b" and t.vocab_size == 1202
    assert t.fingerprint != plain.fingerprint
    change(source, "tokenizer_config.json", added_tokens_decoder={"1300": added})
    with pytest.raises(
        DataError,
        match=(
            r"added token '<think>' is declared as id 1300 and gets 1200; fix"
            r" tokenizer_config\.json"
        ),
    ):
        import_tokenizer(source, tmp_path / "c")


def test_truncation_and_padding_of_the_file_are_left_out(sources, tmp_path):
    folder = shutil.copytree(sources["wordpiece"], tmp_path / "source")
    padding = {
        "strategy": {"Fixed": 8},
        "direction": "Right",
        "pad_to_multiple_of": None,
        "pad_id": 0,
        "pad_type_id": 0,
    }
    truncation = {"max_length": 8, "strategy": "LongestFirst", "stride": 0, "direction": "Right"}
    change(
        folder, "tokenizer.json", truncation=truncation, padding={**padding, "pad_token": "[PAD]"}
    )
    t = import_tokenizer(folder, tmp_path / "out")
    assert len(t.encode("the " * 50)) == 50 and len(t.encode("the")) == 1


# --- text survives


WEIRD = st.sampled_from(["\u2581", "\r", "\0", " ", "  ", "\n", "Ġ", "<s", "the ", "é"])
TEXT = st.lists(st.one_of(WEIRD, st.text(max_size=8)), max_size=12)


@given(text=TEXT.map("".join).filter(lambda text: not any(token in text for token in SPECIAL)))
@settings(max_examples=300, deadline=None)
def test_byte_level_loses_nothing(imported, text):
    t = imported["byte-level"]
    assert (
        t.lossless
        and t.decode(t.encode(text)) == text
        and t.decode_bytes(t.encode(text)) == text.encode()
    )


def test_the_others_do_not_say_that_they_lose_nothing(imported, source, tmp_path):
    assert [imported[kind].lossless for kind in KINDS] == [True, False, False, False]
    change(source, "tokenizer.json", normalizer={"type": "NFC"})
    assert not import_tokenizer(source, tmp_path / "out").lossless


@pytest.mark.parametrize("kind", KINDS)
def test_streamed_pieces_join_to_the_whole(imported, kind):
    t = imported[kind]
    rng = random.Random(0)
    lines = mixed_lines(300, seed=3, special=BERT if kind == "wordpiece" else SPECIAL)
    # Ids in any order too: bytes that are no UTF-8, a continuation first.
    for ids in [
        *t.encode_batch(lines),
        *([rng.randrange(t.vocab_size) for _ in range(30)] for _ in range(300)),
    ]:
        stream = StreamDecoder(t)
        assert "".join([stream.push(id) for id in ids]) + stream.flush() == t.decode(ids)


@pytest.mark.parametrize("kind", KINDS)
def test_decoding_is_that_of_tokenizers(sources, imported, kind):
    from tokenizers import Tokenizer as Reference

    t, reference = imported[kind], Reference.from_file(str(sources[kind] / "tokenizer.json"))
    lines = mixed_lines(500, seed=4)
    for ids in t.encode_batch(lines):
        assert t.decode(ids) == reference.decode(ids)
    assert t.encode_batch([]) == [] and t.encode("") == []
    assert [
        list(memoryview(ids).cast("i")) for ids in t.encode_bytes(lines[:20])
    ] == t.encode_batch(lines[:20])
    with pytest.raises(DataError, match="unpaired surrogate"):
        t.encode("a\ud800")


# --- SentencePiece models of other families


@pytest.fixture
def llama(tokenizer, tmp_path) -> Path:
    """A folder with a SentencePiece model and no tokenizer.json."""
    folder = tmp_path / "llama"
    folder.mkdir()
    shutil.copy(tokenizer.path, folder / "tokenizer.model")
    return folder


def test_a_sentencepiece_model_keeps_its_ids(llama, tokenizer, tmp_path):
    t = import_tokenizer(llama, tmp_path / "out")
    lines = mixed_lines(300, seed=5)
    assert (
        t.encode_batch(lines) == tokenizer.encode_batch(lines)
        and t.fingerprint == tokenizer.fingerprint
    )
    assert (t.pad_id, t.unk_id, t.bos_id, t.eos_ids, t.add_bos, t.add_eos, t.lossless) == (
        0,
        1,
        2,
        (3,),
        True,
        False,
        True,
    )
    assert all(t.decode(t.encode(line)) == line for line in lines)
    assert t.encode("</s>") == tokenizer.encode("</s>") != [3]
    assert (
        t.encode_with_control("<s>a cat</s>")
        == [2, *tokenizer.encode("a cat"), 3]
        == tokenizer.encode_with_control("<s>a cat</s>")
    )


def test_the_ids_of_xlm_roberta_are_moved(llama, tokenizer, tmp_path):
    change(
        llama,
        "tokenizer_config.json",
        tokenizer_class="XLMRobertaTokenizer",
        bos_token="<s>",
        eos_token="</s>",
        mask_token="<mask>",
    )
    (llama / "tokenizer.model").rename(llama / "sentencepiece.bpe.model")
    t = import_tokenizer(llama, tmp_path / "out")
    assert t.vocab_size == tokenizer.vocab_size + 2 and t.add_bos and t.add_eos
    assert t.encode("a<mask>") == [
        *(id + 1 for id in tokenizer.encode("a")),
        tokenizer.vocab_size + 1,
    ]
    assert t.decode(t.encode("the cat")) == "the cat" and t.fingerprint != tokenizer.fingerprint


def test_t5_has_its_sentinels_after_the_model(llama, tokenizer, tmp_path):
    change(llama, "tokenizer_config.json", tokenizer_class="T5Tokenizer", bos_token=None)
    (llama / "tokenizer.model").rename(llama / "spiece.model")
    t = import_tokenizer(llama, tmp_path / "out")
    assert (t.vocab_size, t.bos_id, t.add_bos, t.add_eos) == (
        tokenizer.vocab_size + 100,
        -1,
        False,
        True,
    )
    assert t.encode("<extra_id_0>a<extra_id_99>") == [
        t.vocab_size - 1,
        *tokenizer.encode("a"),
        tokenizer.vocab_size,
    ]


@pytest.mark.parametrize("number", [0, 3])
def test_a_t5_has_as_many_sentinels_as_it_says(llama, tokenizer, tmp_path, number):
    change(
        llama,
        "tokenizer_config.json",
        tokenizer_class="T5Tokenizer",
        bos_token=None,
        extra_ids=number,
    )
    t = import_tokenizer(llama, tmp_path / "out")
    assert t.vocab_size == tokenizer.vocab_size + number and t.encode(
        "<extra_id_4>"
    ) == tokenizer.encode("<extra_id_4>")
    change(llama, "tokenizer_config.json", extra_ids="3")
    with pytest.raises(DataError, match="extra_ids is '3', expected a number from 0 to 10,000"):
        import_tokenizer(llama, tmp_path / "out", overwrite=True)


def test_a_class_that_moves_ids_in_a_way_unknown_here_is_refused(llama, tmp_path):
    change(llama, "tokenizer_config.json", tokenizer_class="CamembertTokenizer")
    with pytest.raises(
        DataError,
        match=(
            r"'CamembertTokenizer' with a SentencePiece model is unknown; known are LlamaTokenizer,"
            r" Gemma"
        ),
    ):
        import_tokenizer(llama, tmp_path / "out")


# --- ranks


def ranks_of(tok: Any) -> bytes:
    """A byte-level vocabulary as a file of ranks, without its special tokens."""
    from llm_jax.tokenizers.token_bytes import byte_characters

    byte, vocab = (
        byte_characters(),
        sorted(tok.get_vocab(with_added_tokens=False).items(), key=lambda entry: entry[1]),
    )
    tokens = [bytes(map(byte.__getitem__, token)) for token, _ in vocab if token not in SPECIAL]
    return b"".join(base64.b64encode(token) + b" %d\n" % rank for rank, token in enumerate(tokens))


def merged(piece: bytes, ranks: dict[bytes, int]) -> list[int]:
    """Byte-pair merging, word for word: always the leftmost of the neighbours whose union has the
    lowest rank.
    """
    if piece in ranks:
        return [ranks[piece]]
    parts = [bytes([b]) for b in piece]
    while pairs := [
        (ranks[a + b], n) for n, (a, b) in enumerate(itertools.pairwise(parts)) if a + b in ranks
    ]:
        _, n = min(pairs)
        parts[n : n + 2] = [parts[n] + parts[n + 1]]
    return [ranks[part] for part in parts]


@pytest.fixture(scope="session")
def ranks_file(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("ranks") / "gpt2.tiktoken"
    path.write_bytes(ranks_of(make_tokenizer("byte-level")))
    return path


def test_ranks_give_the_ids_of_merging_by_rank(ranks_file, tmp_path):
    t = import_tokenizer(ranks_file, tmp_path / "out")
    ranks = {
        base64.b64decode(token): int(rank)
        for token, rank in map(bytes.split, ranks_file.read_bytes().splitlines())
    }
    rng = random.Random(0)
    # Words of one letter over and over are where overlapping pairs of one rank meet.
    words = [
        "".join(rng.choice("aeth ") for _ in range(rng.randint(1, 40))) for _ in range(2000)
    ] + ["a" * n for n in range(60)]
    for word in [w for text in words for w in re.findall(r" ?[a-z]+|\s+(?!\S)|\s+", text)]:
        assert t.encode(word) == merged(word.encode(), ranks)
    assert t.lossless and (t.bos_id, t.eos_ids, t.add_bos) == (-1, (len(ranks),), False)
    assert t.encode("a<|endoftext|>") == [ranks[b"a"], len(ranks)]
    assert all(t.decode(t.encode(line)) == line for line in mixed_lines(300, seed=6))


def test_an_encoding_says_what_a_file_of_ranks_does_not(ranks_file, tmp_path):
    renamed = shutil.copy(ranks_file, tmp_path / "tokenizer.model")
    with pytest.raises(
        DataError,
        match=(
            r"encoding 'tokenizer' is unknown, .* set encoding \(--encoding\) to one of gpt2,"
            r" cl100k, o200k"
        ),
    ):
        import_tokenizer(tmp_path, tmp_path / "out")
    t = import_tokenizer(tmp_path, tmp_path / "out", encoding="llama3")
    size = len(ranks_file.read_bytes().splitlines())
    assert (t.bos_id, t.eos_id, t.add_bos, t.vocab_size) == (size, size + 1, True, size + 256)
    assert [t.piece(size + n) for n in (0, 1, 9)] == [
        "<|begin_of_text|>",
        "<|end_of_text|>",
        "<|eot_id|>",
    ]
    assert (t.path / "tokenizer.model").read_bytes() == Path(renamed).read_bytes()
    hole = import_tokenizer(ranks_file, tmp_path / "hole", encoding="cl100k")
    assert (
        hole.encode("<|endofprompt|>") == [100276]
        and hole.vocab_size == 100277
        and hole.piece(5000) == "<unused 5000>"
    )


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"!!!! 300", "line 1196: b'!!!! 300' is not a token"),
        (b"YQ== 300 4", "is not a token"),
        (b"YQ== -3", "is not a token"),
        (b"YQ== 99999999999", "is not a token"),
        (b"YQ== 5000", "is not a token of at most 512 bytes in base64 and its rank, each once"),
        (base64.b64encode(b"never there before") + b" 7", "two tokens have the same rank"),
        (b"YWFhYQ 3000", "is not a token"),
        (base64.b64encode(b"x" * 600) + b" 3000", "is not a token of at most 512 bytes"),
    ],
)
def test_ranks_that_cannot_be(ranks_file, tmp_path, line, message):
    (tmp_path / "gpt2.tiktoken").write_bytes(ranks_file.read_bytes() + line + b"\n")
    with pytest.raises(DataError, match=message.replace("1196", r"\d+")):
        import_tokenizer(tmp_path, tmp_path / "out")


def test_ranks_without_a_byte(ranks_file, tmp_path):
    lines = [
        line
        for line in ranks_file.read_bytes().splitlines(keepends=True)
        if not line.startswith(base64.b64encode(b"Q") + b" ")
    ]
    (tmp_path / "gpt2.tiktoken").write_bytes(b"".join(lines))
    with pytest.raises(
        DataError, match="byte 81 is not a token, so that not every text has an encoding"
    ):
        import_tokenizer(tmp_path / "gpt2.tiktoken", tmp_path / "out")


# --- folders


def test_a_folder_of_ours_is_opened_as_before(tokenizer):
    folder = tokenizer.path.parent
    opened = open_tokenizer(folder)
    assert type(opened) is SentencePieceTokenizer and opened.fingerprint == tokenizer.fingerprint
    assert set(tokenizer_files(folder)) == {"tokenizer.model", "tokenizer.json"}
    assert (opened.add_bos, opened.add_eos, opened.eos_ids) == (True, True, (3,))


def test_an_imported_folder_knows_its_own_files(imported, tmp_path):
    folder = shutil.copytree(imported["byte-level"].path, tmp_path / "copy")
    files = tokenizer_files(folder)
    assert set(files) == {"tokenizer.json", "tokenizer_config.json", "imported.json"}
    (folder / "tokenizer.json").write_bytes(files["tokenizer.json"] + b" ")
    with pytest.raises(
        DataError, match=r"tokenizer\.json' has changed: sha256 .* import the tokenizer again"
    ):
        open_tokenizer(folder)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(
        DataError, match=r"tokenizer\.json' is missing, though imported\.json names it"
    ):
        open_tokenizer(folder)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"kind": "fasttext"},
            "unknown kind of tokenizer 'fasttext'; known are hugging-face, sentencepiece",
        ),
        ({"format_version": 2}, "format version 2, expected 1"),
        ({"model": "../tokenizer.json"}, "is not the name of a file in its folder"),
        ({"surprise": 1}, "damaged .*surprise"),
    ],
)
def test_records_that_cannot_be_used(imported, tmp_path, values, message):
    folder = shutil.copytree(imported["byte-level"].path, tmp_path / "copy")
    change(folder, "imported.json", **values)
    with pytest.raises(DataError, match=message):
        open_tokenizer(folder)


def test_what_is_not_there_to_import(source, tokenizer, tmp_path):
    with pytest.raises(
        DataError, match=r"does not exist; name a folder with tokenizer\.json or tokenizer\.model"
    ):
        import_tokenizer(tmp_path / "nowhere", tmp_path / "out")
    (tmp_path / "empty").mkdir()
    with pytest.raises(
        DataError, match=r"has no tokenizer\.json, tokenizer\.model, .* there are: $"
    ):
        import_tokenizer(tmp_path / "empty", tmp_path / "out")
    with pytest.raises(DataError, match="is a tokenizer trained by llm_jax; use it without"):
        import_tokenizer(tokenizer.path.parent, tmp_path / "out")
    with pytest.raises(
        DataError, match="import a tokenizer of Hugging Face first, with `llm-jax tokenizer import"
    ):
        open_tokenizer(source)
    import_tokenizer(source, tmp_path / "out")
    with pytest.raises(
        DataError,
        match=(
            r"holds a tokenizer \(imported\.json, .*\); pass overwrite \(--overwrite\) to"
            r" replace it"
        ),
    ):
        import_tokenizer(source, tmp_path / "out")
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "mine.txt").write_text("mine")
    with pytest.raises(DataError, match=r"holds other files \(mine\.txt\); choose another folder"):
        import_tokenizer(source, tmp_path / "notes", overwrite=True)
    with pytest.raises(DataError, match="encoding is 'gpt2', which is for files of ranks"):
        import_tokenizer(source, tmp_path / "other", encoding="gpt2")


def test_without_the_library_the_extra_is_named(imported, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "tokenizers", None)
    with pytest.raises(
        DataError,
        match=r"needs the tokenizers library, which is not installed; pip install -e '\.\[hf\]'",
    ):
        open_tokenizer(imported["byte-level"].path)


# --- files that cannot be used


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        (
            "tokenizer.json",
            {"model": {"type": "New"}},
            r"tokenizer\.json: tokenizers cannot read it",
        ),
        (
            "tokenizer.json",
            {"decoder": {"type": "BPEDecoder", "suffix": "</w>"}},
            "decoder 'BPEDecoder' .* is not supported; supported are",
        ),
        ("tokenizer_config.json", {"eos_token": 7}, "eos_token is '7', expected a token's text"),
        (
            "tokenizer_config.json",
            {"bos_token": "</s>"},
            r"puts \['<s>'\] before a text, and its bos_token is \['</s>'\]; only that one",
        ),
        (
            "tokenizer_config.json",
            {"added_tokens_decoder": [1]},
            "added_tokens_decoder is a list, expected an object",
        ),
        (
            "tokenizer_config.json",
            {"added_tokens_decoder": {"x": {"content": "a"}}},
            "id of added token .* is 'x', expected a number",
        ),
        (
            "tokenizer_config.json",
            {"added_tokens_decoder": {"7": "a"}},
            "added token 7 is 'a', expected an object",
        ),
        (
            "tokenizer_config.json",
            {"extra_special_tokens": "abc"},
            "extra_special_tokens is a str, expected a list",
        ),
        (
            "tokenizer_config.json",
            {"add_bos_token": "yes"},
            "add_bos_token is 'yes', expected true or false",
        ),
        (
            "tokenizer_config.json",
            {"chat_template": 5},
            "chat_template 'default' is a int, expected a text",
        ),
        (
            "tokenizer_config.json",
            {"chat_template": "x" * (2 << 20)},
            "chat template 'default' has 2,097,152 characters, and at most 1,048,576",
        ),
        (
            "generation_config.json",
            {"eos_token_id": [2, "3"]},
            "eos_token_id is '3', expected a number from 0",
        ),
        (
            "generation_config.json",
            {"eos_token_id": True},
            "eos_token_id is 'True', expected a number from 0",
        ),
        (
            "config.json",
            {"vocab_size": 1 << 40},
            "vocab_size is '1099511627776', expected a number from 0",
        ),
    ],
)
def test_what_is_wrong_with_a_file_is_said(source, tmp_path, name, values, message):
    change(source, name, **values)
    with pytest.raises(DataError, match=message):
        import_tokenizer(source, tmp_path / "out")
    assert not (tmp_path / "out" / "imported.json").exists()


def test_random_merging_is_refused(source, tmp_path):
    model = json.loads((source / "tokenizer.json").read_text())["model"]
    change(source, "tokenizer.json", model={**model, "dropout": 0.1})
    with pytest.raises(DataError, match=r"dropout 0\.1.* makes the ids random; set it to null"):
        import_tokenizer(source, tmp_path / "out")


def test_ids_that_tokenizers_would_move_are_refused(source, tmp_path):
    added = json.loads((source / "tokenizer.json").read_text())["added_tokens"]
    change(
        source,
        "tokenizer.json",
        added_tokens=[*added, {**added[0], "id": 5000, "content": "<far>"}],
    )
    with pytest.raises(
        DataError, match="added token '<far>' has id 5000, and tokenizers gives it 1200"
    ):
        import_tokenizer(source, tmp_path / "out")


@pytest.mark.parametrize(
    "data", [b"", b"{", b"[1]", b"\xff\xfe", b"[" * 100_000, b'{"a": "\\ud800"}']
)
def test_files_that_are_no_json_object(source, tmp_path, data):
    for name in ("tokenizer_config.json", "generation_config.json", "tokenizer.json"):
        folder = shutil.copytree(source, tmp_path / name)
        (folder / name).write_bytes(data)
        with pytest.raises(DataError, match=name):
            import_tokenizer(folder, tmp_path / "out")


def test_mutated_files_are_refused_or_used(sources, llama, ranks_file, tmp_path):
    """Nothing but DataError comes out, whatever stands in the files."""
    rng, odd = (
        random.Random(0),
        [None, -1, 2**70, True, "", "x" * 3000, [], {}, [[]], "\ud800", "BPE", {"type": "Regex"}],
    )
    folders = [*sources.values(), llama, make_marian(tmp_path / "marian")]
    refused = 0
    for _ in range(250):
        folder = tmp_path / "mutated"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(rng.choice(folders), folder)
        change(folder, "generation_config.json", eos_token_id=[2, 3])
        path = rng.choice(sorted(folder.iterdir()))
        data = bytearray(path.read_bytes())
        if path.suffix == ".json" and rng.random() < 0.8:
            value = json.loads(data)
            node, key = value, rng.choice(list(value))
            while isinstance(node[key], dict | list) and node[key] and rng.random() < 0.7:
                node = node[key]
                key = rng.choice(list(node)) if isinstance(node, dict) else rng.randrange(len(node))
            node[key] = rng.choice(odd)
            data = json.dumps(value).encode()
        else:
            at = rng.randrange(len(data))
            data[at : at + rng.choice([0, 1, 200])] = bytes(
                rng.randrange(256) for _ in range(rng.choice([0, 1, 9]))
            )
        path.write_bytes(data)
        try:
            t = import_tokenizer(folder, tmp_path / "out", overwrite=True)
            t.decode(t.encode("Hello <s> wörld 😀 \x00"))
        except DataError:
            refused += 1
    assert refused > 60


# --- giving back, and taking from a caller


@pytest.mark.parametrize("kind", KINDS)
def test_export_gives_the_files_back_byte_for_byte(sources, imported, kind, tmp_path):
    written = export_tokenizer(imported[kind].path, tmp_path / "out")
    assert sorted(path.name for path in written) == sorted(
        path.name for path in sources[kind].iterdir()
    )
    assert all(path.read_bytes() == (sources[kind] / path.name).read_bytes() for path in written)
    with pytest.raises(
        DataError, match=r"holds a tokenizer \(.*\); pass overwrite \(--overwrite\) to replace it"
    ):
        export_tokenizer(imported[kind].path, tmp_path / "out")


def test_export_of_our_own_says_what_transformers_needs(tokenizer, corpus, tmp_path):
    from llm_jax.data.prepare.train_tokenizer import train_tokenizer

    export_tokenizer(tokenizer.path.parent, tmp_path / "out")
    assert (tmp_path / "out" / "tokenizer.model").read_bytes() == tokenizer.path.read_bytes()
    config = json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())
    assert config["tokenizer_class"] == "LlamaTokenizer" and config["add_prefix_space"] is False
    assert [config[f"{name}_token"] for name in ("bos", "eos", "unk", "pad")] == [
        "<s>",
        "</s>",
        "<unk>",
        "<pad>",
    ]
    assert not (tmp_path / "out" / "tokenizer.json").exists()
    train_tokenizer((str(corpus),), tmp_path / "unigram", vocab_size=330, model_type="unigram")
    with pytest.raises(
        DataError, match="is a unigram model, and transformers' Llama tokenizer merges pairs"
    ):
        export_tokenizer(tmp_path / "unigram", tmp_path / "other")


def test_a_tokenizer_built_by_a_caller(tmp_path):
    tok = make_tokenizer("byte-level")
    built = {**json.loads(tok.to_str()), "post_processor": None}
    specials = Specials(1, (2, 5), 3, 0, add_bos=True, vocab_size=1216)
    t = write_tokenizer(
        source_of_json(built, specials, CHATML, where="some.gguf"), tmp_path / "out"
    )
    assert (t.bos_id, t.eos_ids, t.pad_id, t.unk_id, t.add_bos, t.add_eos, t.vocab_size) == (
        1,
        (2, 5),
        3,
        0,
        True,
        False,
        1216,
    )
    lines = mixed_lines(100, seed=8, special=SPECIAL)
    assert t.encode_batch(lines) == [
        encoding.ids for encoding in tok.encode_batch(lines, add_special_tokens=False)
    ]
    with pytest.raises(DataError, match="eos id 5000 is not in the vocabulary"):
        source_of_json(built, Specials(eos=(5000,)), where="some.gguf")
    with pytest.raises(
        DataError,
        match="gives add_bos=True, add_eos=False, and add_bos=False, add_eos=False were asked for",
    ):
        source_of_json(json.loads(tok.to_str()), Specials(1, (2,)), where="some.gguf")


@pytest.mark.parametrize("workers", [1, 2])
def test_shards_are_prepared_with_an_imported_tokenizer(imported, corpus, tmp_path, workers):
    t = imported["byte-level"]
    manifest = prepare(
        (str(corpus),),
        t.path,
        tmp_path / "out",
        block_size=64,
        workers=workers,
        validation_fraction=0.2,
    )
    assert (
        manifest["tokenizer"]["fingerprint"]
        == t.fingerprint
        == open_tokenizer(tmp_path / "out" / "tokenizer").fingerprint
    )
    text = inspect_shards(tmp_path / "out", rows=1)
    assert "1,200 tokens" in text and "<s>" in text
    built = {**json.loads(make_tokenizer("byte-level").to_str()), "post_processor": None}
    no_bos = write_tokenizer(source_of_json(built, Specials(eos=(2,))), tmp_path / "no_bos")
    with pytest.raises(DataError, match="has no <s>; pass add_bos=False"):
        prepare((str(corpus),), no_bos.path, tmp_path / "other", workers=1)
