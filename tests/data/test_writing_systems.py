"""Vocabularies of one script alone lose no text of any script, stream it whole, and are refused
where they would lose any.
"""

from __future__ import annotations

import itertools
import json
import random
from pathlib import Path

import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st
from script_text import ALPHABETS, ODD, script_lines

from llm_jax.data.prepare import train_tokenizer as training
from llm_jax.data.prepare.round_trip import SCRIPTS, check_round_trip
from llm_jax.data.prepare.train_tokenizer import train_tokenizer
from llm_jax.tokenizers.open_tokenizer import open_tokenizer
from llm_jax.tokenizers.sentencepiece_tokenizer import SentencePieceTokenizer
from llm_jax.tokenizers.tokenizer import StreamDecoder, continuation
from llm_jax.types import DataError

# Of these the text has no blank at all.
UNSPACED = {"Thai", "Chinese", "Japanese", "Emoji"}


def trained(folder: Path, lines: list[str], **options) -> SentencePieceTokenizer:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "text.jsonl").write_text("".join(json.dumps({"text": line}) + "\n" for line in lines))
    options = {"vocab_size": 380, "overwrite": True} | options
    return train_tokenizer((str(folder / "text.jsonl"),), folder / "tokenizer", **options)


@pytest.fixture(scope="module")
def vocabularies(tmp_path_factory) -> dict[tuple[str, str], SentencePieceTokenizer]:
    root = tmp_path_factory.mktemp("scripts")
    return {
        (script, kind): trained(
            root / script / kind,
            script_lines(script, blanks=script not in UNSPACED),
            model_type=kind,
        )
        for script, kind in itertools.product(ALPHABETS, ("bpe", "unigram"))
    }


WORDS = {
    script: st.lists(st.sampled_from(letters), max_size=8).map("".join)
    for script, letters in ALPHABETS.items()
}
PART = st.one_of(
    *WORDS.values(), st.sampled_from([" ", "  ", "\n", "\t", *ODD]), st.text(max_size=4)
)


@given(
    script=st.sampled_from(list(ALPHABETS)),
    kind=st.sampled_from(["bpe", "unigram"]),
    parts=st.lists(PART, max_size=8),
    data=st.data(),
)
@settings(max_examples=400, deadline=None)
def test_a_text_of_any_script_comes_back_whole_and_streamed(
    vocabularies, script, kind, parts, data
):
    t = vocabularies[script, kind]
    text = " ".join([*parts, data.draw(WORDS[script])])
    ids = t.encode(text)
    assert t.decode(ids) == text and t.decode_bytes(ids) == text.encode()
    stream = StreamDecoder(t)
    assert "".join(map(stream.push, ids)) + stream.flush() == text
    cut = data.draw(st.integers(0, len(ids)))
    # A character that is cut in two belongs to what follows.
    whole = t.decode_bytes(ids[:cut]).decode("utf-8", errors="ignore")
    assert whole + continuation(t, ids[:cut], ids[cut:]) == text


def test_every_vocabulary_has_the_blank_and_says_what_its_file_says(vocabularies):
    for (script, kind), t in vocabularies.items():
        assert t.lossless and not t.adds_prefix and t.merges == (kind == "bpe")
        assert [t.piece(id) for id in t.encode(" ")] == [" "], script
        assert t.encode("\n") == [4 + 0x0A] and t.encode("\t") == [4 + 0x09]
        with pytest.raises(DataError, match="unpaired surrogate at character 1"):
            t.encode("a\udc00")


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
@pytest.mark.parametrize("blanks", [0, 1])
def test_a_blank_that_coverage_would_drop_has_a_piece(tmp_path, kind, blanks):
    lines = script_lines("Chinese", blanks=False) + ["天 地"] * blanks
    t = trained(tmp_path, lines, model_type=kind)
    assert t.decode(t.encode(" a  b 天\n")) == " a  b 天\n" and len(t.encode(" ")) == 1


def test_blanks_that_are_all_in_a_symbol_have_a_piece_too(tmp_path):
    lines = [
        "天地 玄黄".join(line[:4] for line in script_lines("Korean", blanks=False))
        for _ in range(3)
    ]
    t = trained(tmp_path, lines, vocab_size=330, user_symbols=("天地 玄黄",))
    assert [t.piece(id) for id in t.encode("天地 玄黄 天")] == [
        "天地 玄黄",
        " ",
        "<0xE5>",
        "<0xA4>",
        "<0xA9>",
    ]


def test_the_model_file_is_as_before_where_the_text_has_blanks(tmp_path, corpus):
    """``required_chars`` is written into the file, and so would change the fingerprint of every
    vocabulary.
    """
    from sentencepiece import sentencepiece_model_pb2 as pb

    t = train_tokenizer((str(corpus),), tmp_path / "t", vocab_size=330)
    assert pb.ModelProto.FromString(t.path.read_bytes()).trainer_spec.required_chars == ""


# --- what a model file says is read there, and not tried out


@pytest.mark.parametrize(
    ("prefix", "removes", "suffix", "bytes_"), [*itertools.product([False, True], repeat=4)]
)
def test_a_model_of_russian_is_read_as_its_file_says(tmp_path, prefix, removes, suffix, bytes_):
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(script_lines("Cyrillic")),
        model_prefix=str(tmp_path / "m"),
        vocab_size=330 if bytes_ else 80,
        model_type="bpe",
        byte_fallback=bytes_,
        add_dummy_prefix=prefix,
        remove_extra_whitespaces=removes,
        minloglevel=3,
        treat_whitespace_as_suffix=suffix,
        normalization_rule_name="identity",
        character_coverage=1.0,
    )
    ours = SentencePieceTokenizer(tmp_path / "m.model")
    theirs = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "m.model"))
    assert ours.adds_prefix == (prefix and not suffix) and ours.lossless == (
        bytes_ and not prefix and not removes
    )
    rng = random.Random(0)
    known = [
        id for id in range(ours.vocab_size) if not theirs.IsByte(id) and not theirs.IsUnknown(id)
    ]
    blanks = [id for id in known if not ours.piece(id).strip()]
    texts = [" ё  ж", "жук", "  ", *script_lines("Cyrillic")[:20]]
    assert ours.encode_batch(texts) == theirs.EncodeAsIds(texts)
    rows = [
        [rng.choice(blanks if rng.random() < 0.3 else known) for _ in range(rng.randint(0, 6))]
        for _ in range(300)
    ]
    for ids in [*rows, *ours.encode_batch(texts)]:
        if any(map(theirs.IsUnknown, ids)):
            continue
        assert ours.decode(ids) == theirs.DecodeIds(ids)
        stream = StreamDecoder(ours)
        assert "".join(map(stream.push, ids)) + stream.flush() == ours.decode(ids)


def test_a_model_with_rules_for_decoding_is_refused(tmp_path, tokenizer):
    from sentencepiece import sentencepiece_model_pb2 as pb

    nfkc = model_without(["the cat sat"] * 9, vocab_size=15, normalization_rule_name="nmt_nfkc")
    model = pb.ModelProto.FromString(tokenizer.path.read_bytes())
    model.denormalizer_spec.precompiled_charsmap = pb.ModelProto.FromString(
        nfkc
    ).normalizer_spec.precompiled_charsmap
    (tmp_path / "m.model").write_bytes(model.SerializeToString())
    with pytest.raises(DataError, match="rules for decoding, which are not supported"):
        SentencePieceTokenizer(tmp_path / "m.model")


# --- symbols

WORDS_OF_LINES = [
    "the",
    "New York",
    "cat",
    "sat",
    "on",
    "New  York",
    "mats,",
    "in",
    "old",
    "York",
    "a,b",
    "it's",
]
LINES = [" ".join(random.Random(n).choices(WORDS_OF_LINES, k=12)) for n in range(200)]


@pytest.mark.parametrize(
    "symbol",
    [
        "New York",
        " New York",
        "York ",
        " ",
        "   ",
        "a,b",
        'a"b',
        "it's",
        "\n",
        "\t",
        "a\nb",
        "the",
        "x",
        "\u2585",
        "🙂",
        "<0x4>",
        "\r\n",
    ],
)
@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_a_user_symbol_is_one_token_wherever_it_stands(tmp_path, kind, symbol):
    t = trained(
        tmp_path,
        LINES,
        vocab_size=300 if kind == "bpe" else 288,
        model_type=kind,
        user_symbols=(symbol,),
        whitespace=False,
    )
    (id,) = t.encode(symbol)
    assert t.piece(id) == symbol and not t.is_control(id)
    for before, after in itertools.product(["", "q", "q ", "\n"], ["", "q", " q"]):
        text = f"{before}{symbol}{after}"
        ids = t.encode(text)
        assert t.decode(ids) == text
        if symbol.strip(" "):
            assert ids == [*t.encode(before), id, *t.encode(after)]
    assert open_tokenizer(tmp_path / "tokenizer").encode(symbol) == [id]


def test_of_symbols_that_overlap_the_longest_at_the_leftmost_place_is_found(tmp_path):
    t = trained(
        tmp_path, LINES, vocab_size=300, user_symbols=("York", "New York", "New", "York mats")
    )
    pieces = [t.piece(id) for id in t.encode("New York mats,New Yorks")]
    assert [p for p in pieces if "New" in p or "York" in p] == ["New York", "New York"]
    assert "".join(pieces) == "New York mats,New Yorks"


@pytest.mark.parametrize("option", ["user_symbols", "control_symbols"])
@pytest.mark.parametrize(
    ("symbols", "message"),
    [
        (("",), "'' is empty"),
        (("<s>",), "'<s>' is there already"),
        (("</s>",), "is there already"),
        (("<pad>",), "is there already"),
        (("<unk>",), "'<unk>' is there already"),
        (("<a>", "<b>", "<a>"), "'<a>' is there already; leave it out"),
        (("<0x41>",), "'<0x41>' is how the token of a byte is written"),
        (("<0x4a>",), "is how the token of a byte is written"),
        (("a\u2581b",), r"has U\+2581 in it"),
        (("a\0b",), "has a NUL in it"),
        (("a\ud800",), "has an unpaired surrogate"),
        (("<extra_id_1>",), "'<extra_id_1>' is there already"),
    ],
)
def test_a_symbol_that_cannot_be_a_token_is_refused_by_name(tmp_path, option, symbols, message):
    name = rf"{option}=.* \(--{option.replace('_', '-')}\): .*{message}"
    with pytest.raises(DataError, match=name):
        trained(tmp_path, LINES, sentinels=2, **{option: symbols})
    assert not (tmp_path / "tokenizer").exists()


def test_a_symbol_is_a_user_symbol_or_a_control_symbol(tmp_path):
    with pytest.raises(
        DataError, match=r"control_symbols=\['<a>'\] \(--control-symbols\): '<a>' is there already"
    ):
        trained(tmp_path, LINES, user_symbols=("<a>",), control_symbols=("<a>",))
    with pytest.raises(
        DataError,
        match=(
            "vocab_size=280 is too small: the bytes, special tokens, symbols and characters .* need"
        ),
    ):
        trained(tmp_path, LINES, vocab_size=280, user_symbols=tuple(f"<{n}>" for n in range(50)))


def test_a_control_symbol_with_any_text_stands_for_no_text(tmp_path):
    control = ("the", "a b", "x,y", "New York")
    t = trained(tmp_path, LINES, vocab_size=300, control_symbols=control)
    ids = {t.piece(id): id for id in range(t.vocab_size) if t.is_control(id)}
    assert set(control) < set(ids)
    text = "the New York x,y a b"
    assert t.decode(t.encode(text)) == text and not any(map(t.is_control, t.encode(text)))
    assert t.encode_with_control("qNew York") == [*t.encode("q"), ids["New York"]]


def test_symbols_that_cleaning_changes_are_said(tmp_path, capsys):
    trained(tmp_path, LINES, vocab_size=300, user_symbols=("<|User|>", "<|ok|>"), lower_case=True)
    said = capsys.readouterr().err
    assert (
        "cleaning changes '<|User|>', so no cleaned text has them" in said and "<|ok|>" not in said
    )


# --- training ends with a check


def model_without(lines: list[str], **options) -> bytes:
    import io

    out = io.BytesIO()
    defaults = {
        "vocab_size": 60,
        "model_type": "bpe",
        "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False,
    }
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=out,
        minloglevel=3,
        add_dummy_prefix=False,
        **{**defaults, **options},
    )
    return out.getvalue()


def test_a_vocabulary_that_loses_text_is_not_written(tmp_path, monkeypatch):
    kept = trained(tmp_path, LINES, vocab_size=300).path.read_bytes()
    broken = model_without(LINES[:50], vocab_size=25)
    monkeypatch.setattr(training, "_trained", lambda *_, **__: broken)
    with pytest.raises(
        DataError,
        match=(
            "the trained vocabulary loses text: 'x1 the' comes back as '\ufffd the'; nothing was"
            " written"
        ),
    ):
        trained(tmp_path, [*LINES, "x1 the", "x2 the"], vocab_size=300)
    assert (tmp_path / "tokenizer" / "tokenizer.model").read_bytes() == kept
    with pytest.raises(DataError, match="loses text: "):
        trained(tmp_path / "new", LINES)
    assert not any((tmp_path / "new" / "tokenizer").iterdir())


def test_one_that_loses_only_what_its_text_lacks_is_not_written_either(tmp_path):
    """The built-in texts have what the vocabulary's own text has not; lost is lost whatever the
    model says of itself.
    """
    russian = SentencePieceTokenizer(
        tmp_path / "m", model_without(script_lines("Cyrillic"), character_coverage=1.0)
    )
    with pytest.raises(DataError, match=f"loses text: '{SCRIPTS['Latin'][:10]}"):
        check_round_trip(russian, [], ())


def test_one_that_does_not_say_that_it_is_loss_free_is_refused(tokenizer, monkeypatch):
    assert check_round_trip(tokenizer, ["the cat\tsat"], ("<|user|>",)) is None
    with pytest.raises(DataError, match=r"'the cat' becomes .* and not one token"):
        check_round_trip(tokenizer, [], ("the cat",))
    # Such a model takes U+2581 for a blank.
    monkeypatch.setattr(tokenizer, "lossless", False)
    monkeypatch.setattr(tokenizer, "_by_words", False)
    monkeypatch.setattr(tokenizer, "_blank_ids", None)
    with pytest.raises(DataError, match="loses text: '\u2581' comes back as ' '"):
        check_round_trip(tokenizer, [], ())


def test_a_folder_of_something_else_is_not_trained_into(tmp_path, corpus, tokenizer):
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "mine.txt").write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(
            DataError, match=r"holds other files \(mine\.txt\); choose another folder"
        ):
            train_tokenizer((str(corpus),), tmp_path / "notes", vocab_size=420, overwrite=overwrite)
    assert [p.name for p in (tmp_path / "notes").iterdir()] == ["mine.txt"]


def test_a_vocabulary_in_the_place_of_an_imported_one_is_the_one_that_is_opened(
    tmp_path, corpus, tokenizer
):
    from llm_jax.tokenizers.import_tokenizer import import_tokenizer

    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "tokenizer.model").write_bytes(tokenizer.path.read_bytes())
    import_tokenizer(tmp_path / "source", tmp_path / "t")
    with pytest.raises(
        DataError, match=r"holds a tokenizer \(.*\); pass overwrite \(--overwrite\) to replace it"
    ):
        train_tokenizer((str(corpus),), tmp_path / "t", vocab_size=421)
    trained = train_tokenizer((str(corpus),), tmp_path / "t", vocab_size=421, overwrite=True)
    assert (
        open_tokenizer(tmp_path / "t").fingerprint == trained.fingerprint != tokenizer.fingerprint
    )
