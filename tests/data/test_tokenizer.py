"""Tokenizers lose nothing, stream whole characters, and say what is wrong with a
vocabulary size.
"""

from __future__ import annotations

import random

import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_jax.data.prepare.train_tokenizer import sample, train_tokenizer
from llm_jax.tokenizers.sentencepiece_tokenizer import SentencePieceTokenizer
from llm_jax.tokenizers.tokenizer import StreamDecoder
from llm_jax.types import DataError

WEIRD = [
    "\u2581",
    "\r",
    "\0",
    "\n",
    "\t",
    " ",
    "  ",
    "<s>",
    "</s>",
    "<pad>",
    "<unk>",
    "<0x0A>",
    "<|user|>",
    "\u2585",
    "\ufffd",
    "\ufeff",
]
TEXT = st.lists(
    st.one_of(st.sampled_from([*WEIRD, "the ", "cat"]), st.text(max_size=8)), max_size=12
).map("".join)


@pytest.fixture(scope="module", params=["bpe", "unigram"])
def either(request, corpus, tokenizer, tmp_path_factory) -> SentencePieceTokenizer:
    if request.param == "bpe":
        return tokenizer
    return train_tokenizer(
        (str(corpus),), tmp_path_factory.mktemp("unigram"), vocab_size=330, model_type="unigram"
    )


@given(text=TEXT)
@settings(max_examples=400, deadline=None)
def test_round_trip_is_exact(either, text):
    assert either.decode(either.encode(text)) == text
    assert either.decode_bytes(either.encode(text)) == text.encode()


@given(text=TEXT)
@settings(max_examples=150, deadline=None)
def test_streaming_gives_the_same_text_in_whole_characters(either, text):
    ids = [either.bos_id, *either.encode(text), either.eos_id]
    stream = StreamDecoder(either)
    parts = [stream.push(id) for id in ids]
    assert "".join(parts) + stream.flush() == either.decode(ids) == text
    assert all("\ufffd" not in part for part in parts) or "\ufffd" in text


def test_streaming_a_split_emoji_waits_and_a_cut_one_is_flushed(tokenizer):
    ids = tokenizer.encode("a😀")
    stream = StreamDecoder(tokenizer)
    assert [stream.push(id) for id in ids] == ["a", "", "", "", "😀"]
    stream = StreamDecoder(tokenizer)
    parts = [stream.push(id) for id in ids[:-1]]
    assert "".join(parts) + stream.flush() == "a\ufffd" == tokenizer.decode(ids[:-1])


def test_long_texts_keep_every_token(either):
    rng = random.Random(0)
    for blank in (" ", "\n", "  "):
        text = "".join(
            rng.choice(["the", "cat", "é", "birds", "\u2581", "    "]) + blank
            for _ in range(30_000)
        )
        assert either.decode(either.encode(text)) == text
        plain = text.replace("\u2581", "x")
        assert either.encode(plain) == either._model.EncodeAsIds(plain)


BLANKS = (
    st.lists(
        st.one_of(
            st.sampled_from(
                [*WEIRD[1:], "<|user|>", " <|user|>", "a b", "the ", "cat", "    ", "\n\n"]
            ),
            st.text(max_size=8),
        ),
        max_size=20,
    )
    .map("".join)
    .map(lambda text: text.replace("\u2581", ""))
)


@pytest.fixture(
    scope="module",
    params=[("<|user|>",), (" <|user|>",), ("a b", "the ")],
    ids=["symbol", "blank-first", "blank-inside"],
)
def symbols(request, corpus, tmp_path_factory) -> SentencePieceTokenizer:
    return train_tokenizer(
        (str(corpus),), tmp_path_factory.mktemp("bpe"), vocab_size=420, user_symbols=request.param
    )


@given(text=BLANKS)
@settings(max_examples=300, deadline=None)
def test_word_by_word_gives_the_tokens_of_the_whole(symbols, text):
    assert symbols._by_words == (symbols._model.PieceToId("a\u2581b") == symbols.unk_id)
    assert symbols.encode(text) == symbols._model.EncodeAsIds(text)


def test_remembered_words_are_bounded_and_forgetting_changes_no_token(tokenizer, monkeypatch):
    monkeypatch.setattr("llm_jax.tokenizers.sentencepiece_tokenizer._MAX_KNOWN_CHARACTERS", 50)
    for word in map("w{}x".format, range(300)):
        assert tokenizer.encode(f"the {word} \u2581 cat") == [
            *tokenizer._model.EncodeAsIds(f"the {word} "),
            *tokenizer.encode("\u2581"),
            *tokenizer._model.EncodeAsIds(" cat"),
        ]
        assert sum(map(len, tokenizer._known)) < 100


def test_a_model_that_drops_blanks_is_left_to_do_so(corpus, tmp_path):
    lines = [line for path in sorted(corpus.iterdir()) for line in path.read_text().splitlines()]
    prefix = str(tmp_path / "m")
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_prefix=prefix,
        vocab_size=330,
        model_type="bpe",
        add_dummy_prefix=False,
        byte_fallback=True,
        minloglevel=2,
    )
    loaded = SentencePieceTokenizer(prefix + ".model")
    text = "the  cat sat " * 100 + "\n the cat"
    assert not loaded.lossless and loaded.encode(text) == loaded._model.EncodeAsIds(text)


@pytest.mark.parametrize(
    ("rule", "text"), [("0D 0A\t0A", "\r\n\u00a0"), ("61 20 62\t63", "a b a b"), ("41\t61", "A")]
)
def test_a_model_with_rules_of_its_own_is_left_to_apply_them(corpus, tmp_path, rule, text):
    (tmp_path / "rules.tsv").write_text(rule + "\n")
    lines = [line for path in sorted(corpus.iterdir()) for line in path.read_text().splitlines()]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_prefix=str(tmp_path / "own"),
        vocab_size=330,
        model_type="bpe",
        byte_fallback=True,
        normalization_rule_tsv=str(tmp_path / "rules.tsv"),
        remove_extra_whitespaces=False,
        add_dummy_prefix=False,
        minloglevel=2,
    )
    ours = SentencePieceTokenizer(tmp_path / "own.model")
    assert not ours.lossless
    assert ours.encode(text) == sentencepiece.SentencePieceProcessor(
        model_file=str(tmp_path / "own.model")
    ).EncodeAsIds(text)


def test_ids_and_protocol(tokenizer):
    assert (tokenizer.pad_id, tokenizer.unk_id, tokenizer.bos_id, tokenizer.eos_id) == (0, 1, 2, 3)
    assert [tokenizer.piece(i) for i in range(4)] == ["<pad>", "<unk>", "<s>", "</s>"]
    assert [tokenizer.is_control(i) for i in range(5)] == [True, False, True, True, False]
    assert tokenizer.vocab_size == 420 and tokenizer.lossless
    assert len(tokenizer.encode("<|user|>")) == 1 and len(tokenizer.encode("\n")) == 1
    assert tokenizer.encode_batch(["a cat", "", "é"]) == [
        tokenizer.encode(t) for t in ("a cat", "", "é")
    ]
    assert tokenizer.encode_batch([]) == []
    with pytest.raises(
        DataError, match="token ids from 420 to 420; this tokenizer has ids 0 to 419"
    ):
        tokenizer.decode([420])
    with pytest.raises(DataError, match="unpaired surrogate"):
        tokenizer.encode("a\ud800")


def test_training_is_deterministic_and_the_fingerprint_follows_the_model(
    corpus, tokenizer, tmp_path
):
    again = train_tokenizer(
        (str(corpus),), tmp_path / "a", vocab_size=420, user_symbols=("<|user|>",)
    )
    other = train_tokenizer((str(corpus),), tmp_path / "b", vocab_size=421)
    assert again.fingerprint == tokenizer.fingerprint != other.fingerprint
    assert (
        SentencePieceTokenizer(tmp_path / "a" / "tokenizer.model").fingerprint
        == tokenizer.fingerprint
    )


def test_a_model_with_a_dummy_prefix_keeps_its_own_ways(corpus, tmp_path):
    lines = [line for path in sorted(corpus.iterdir()) for line in path.read_text().splitlines()]
    prefix = str(tmp_path / "m")
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_prefix=prefix, vocab_size=120, minloglevel=2
    )
    loaded = SentencePieceTokenizer(prefix + ".model")
    assert not loaded.lossless
    ids = loaded.encode("the cat sat")
    assert ids == loaded._model.EncodeAsIds("the cat sat") and loaded.decode(ids) == "the cat sat"
    assert loaded.encode("the \u2581 cat") == loaded._model.EncodeAsIds("the \u2581 cat")
    stream = StreamDecoder(loaded)
    assert "".join(stream.push(id) for id in ids) + stream.flush() == "the cat sat"


def test_the_sample_is_bounded_spread_and_seeded():
    texts = [f"{i} " + "word " * 200 for i in range(200)]
    lines, seen = sample(iter(texts), 20_000, seed=0)
    assert seen == sum(map(len, texts)) and 15_000 < sum(map(len, lines)) <= 20_000
    places = [int(line.split()[0]) for line in lines]
    assert places == sorted(places) and min(places) < 60 and max(places) > 140
    assert sample(iter(texts), 20_000, seed=0)[0] == lines != sample(iter(texts), 20_000, seed=1)[0]
    assert sample(iter(["a\nb", "c"]), 100, seed=0) == (["a", "b", "c"], 4)


@pytest.mark.parametrize("model_type", ["bpe", "unigram"])
def test_vocabulary_sizes_that_cannot_be(corpus, tmp_path, model_type):
    with pytest.raises(
        DataError, match=r"vocab_size=50000 is larger than this text allows: at most \d+"
    ):
        train_tokenizer((str(corpus),), tmp_path / "a", vocab_size=50_000, model_type=model_type)
    with pytest.raises(DataError, match=r"vocab_size=100 is too small: .* need \d+"):
        train_tokenizer((str(corpus),), tmp_path / "b", vocab_size=100, model_type=model_type)


def test_bad_places_are_named(corpus, tokenizer, tmp_path):
    with pytest.raises(DataError, match=r"no tokenizer\.model there"):
        SentencePieceTokenizer(tmp_path)
    (tmp_path / "bad.model").write_bytes(b"no model")
    with pytest.raises(DataError, match=r"bad\.model': not a SentencePiece model"):
        SentencePieceTokenizer(tmp_path / "bad.model")
    said = (
        r"holds a tokenizer \(tokenizer\.json, tokenizer\.model\); pass overwrite \(--overwrite\)"
        r" to replace it"
    )
    with pytest.raises(DataError, match=said):
        train_tokenizer((str(corpus),), tokenizer.path.parent, vocab_size=420)
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot be written"):
        train_tokenizer((str(corpus),), tmp_path / "file" / "tok", vocab_size=420)
    (tmp_path / "blank.txt").write_text(" \n \n")
    with pytest.raises(DataError, match="no text left to train on after cleaning"):
        train_tokenizer((str(tmp_path / "blank.txt"),), tmp_path / "t")
