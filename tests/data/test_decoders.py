"""From ids to text: the text of ``tokenizers`` for every decoder and added token, token by token,
and after any prompt.
"""

from __future__ import annotations

import itertools
import json
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip(
    "tokenizers", reason="imported tokenizers need the extra: pip install -e '.[hf]'"
)

import tokenizers
from hf_builders import KINDS, make_folder, make_marian
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors

from llm_jax.tokenizers.import_records import around
from llm_jax.tokenizers.import_tokenizer import import_tokenizer
from llm_jax.tokenizers.token_bytes import byte_characters, token_decoder
from llm_jax.tokenizers.tokenizer import StreamDecoder, Tokenizer, continuation
from llm_jax.types import DataError

LETTERS = [
    "<unk>",
    "\u2581",
    "a",
    "\u2581a",
    "b",
    "\u2581\u2581b",
    "a\u2581b",
    "##a",
    "##ing",
    "n't",
    ".",
    "do",
    "\u0120c",
    "\u00e9",
]
BYTES = [f"<0x{b:02X}>" for b in range(128)]
ADDED = [
    "<x>",
    "a b",
    " \u00e9",
    "\u0120q",
    "\u2581z",
    "##w",
    "<0x41>",
    " .",
    "do not",
    "\u00ff",
    "ABC",
    "\u2581\u2581",
]


def plain(decoder: Any, normalizer: Any = None) -> Any:
    tok = tokenizers.Tokenizer(
        models.BPE(
            vocab={text: id for id, text in enumerate([*LETTERS, *BYTES])},
            merges=[],
            unk_token="<unk>",
        )
    )
    if normalizer:
        tok.normalizer = normalizer
    if decoder:
        tok.decoder = decoder
    return tok


def byte_level(normalizer: Any = None) -> Any:
    vocab = {text: id for id, text in enumerate(byte_characters())}
    tok = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tok.decoder = decoders.ByteLevel()
    if normalizer:
        tok.normalizer = normalizer
    else:
        tok.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return tok


BLANK = decoders.Replace("\u2581", " ")
STRIP = decoders.Strip(" ", 1, 0)
LLAMA = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
MADE = {
    "byte-level": byte_level,
    "byte-level, normalised to bytes": lambda: byte_level(normalizers.ByteLevel()),
    "byte-level, lower case": lambda: byte_level(normalizers.Lowercase()),
    "llama": lambda: plain(
        decoders.Sequence([BLANK, decoders.ByteFallback(), decoders.Fuse(), STRIP]), LLAMA
    ),
    "gemma": lambda: plain(
        decoders.Sequence([BLANK, decoders.ByteFallback(), decoders.Fuse()]),
        normalizers.Replace(" ", "\u2581"),
    ),
    "strip each": lambda: plain(decoders.Sequence([BLANK, STRIP, decoders.Fuse()])),
    "metaspace": lambda: plain(decoders.Metaspace()),
    "metaspace never": lambda: plain(decoders.Metaspace(prepend_scheme="never")),
    "metaspace then bytes": lambda: plain(
        decoders.Sequence([decoders.Metaspace(), decoders.ByteFallback()])
    ),
    "wordpiece": lambda: plain(decoders.WordPiece(), normalizers.BertNormalizer()),
    "wordpiece without clean-up": lambda: plain(decoders.WordPiece(cleanup=False)),
    "none": lambda: plain(None),
}


def folder_of(tok: Any, folder: Path) -> Path:
    """With every text of ``ADDED`` in one of four ways, as a folder to import."""
    ways = [
        {},
        {"normalized": True},
        {"normalized": False, "lstrip": True},
        {"normalized": True, "rstrip": True},
    ]
    for n, text in enumerate(ADDED):
        tok.add_tokens([AddedToken(text, special=False, **ways[n % len(ways)])])
    tok.add_special_tokens(
        [AddedToken("<s>", normalized=False), AddedToken("</s>", normalized=False)]
    )
    folder.mkdir(parents=True)
    tok.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"bos_token": "<s>", "eos_token": "</s>"})
    )
    return folder


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> dict[str, tuple[Tokenizer, Any]]:
    root = tmp_path_factory.mktemp("decoders")
    out = {}
    for n, (name, make) in enumerate(MADE.items()):
        folder = folder_of(make(), root / f"source{n}")
        out[name] = (
            import_tokenizer(folder, root / f"out{n}"),
            tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json")),
        )
    return out


@given(
    name=st.sampled_from(list(MADE)),
    picks=st.lists(st.tuples(st.booleans(), st.integers(0, 10**6)), max_size=8),
)
@settings(max_examples=800, deadline=None)
def test_every_decoder_gives_the_text_of_tokenizers(made, name, picks):
    ours, theirs = made[name]
    # An added token every other time; the special ones, which are last, among them.
    first_added = ours.vocab_size - len(ADDED) - 2
    ids = [
        first_added + n % (ours.vocab_size - first_added) if added else n % ours.vocab_size
        for added, n in picks
    ]
    assert ours.decode(ids) == theirs.decode(ids)


def test_an_added_token_is_decoded_as_tokenizers_writes_it(made):
    """Literal texts, of a normalised token and one that is not."""
    for name, text in (
        ("byte-level, normalised to bytes", "\u00ff"),
        ("byte-level", "\ufffd"),
        ("byte-level, lower case", "\ufffd"),
    ):
        ours, theirs = made[name]
        assert ours.decode([theirs.token_to_id("\u00ff")]) == text
    assert ours.decode([theirs.token_to_id("ABC")]) == "ABC" and not ours.lossless
    llama, reference = made["llama"]
    a, normalised = reference.token_to_id("a"), reference.token_to_id("a b")
    assert llama.decode([a, normalised, a]) == "a a ba"
    assert llama.piece(normalised) == "a b"


@pytest.mark.parametrize(
    "decoder",
    [
        decoders.Sequence([decoders.Fuse(), decoders.Metaspace()]),
        decoders.Sequence([decoders.Fuse(), decoders.Replace("ab", "c")]),
        decoders.Strip("x", 1, 0),
        decoders.Strip(" ", 2, 0),
        decoders.Strip(" ", 0, 1),
        decoders.BPEDecoder(),
        decoders.CTC(),
        decoders.Replace(tokenizers.Regex("a+"), "b"),
        decoders.Sequence([decoders.Fuse(), decoders.ByteFallback()]),
    ],
)
def test_a_decoder_that_needs_more_than_one_token_is_refused(tmp_path, decoder):
    with pytest.raises(DataError, match="is not supported; supported are ByteLevel"):
        import_tokenizer(folder_of(plain(decoder), tmp_path / "source"), tmp_path / "out")


PARTS = (
    decoders.Replace("\u2581", " "),
    decoders.Replace("a", ""),
    decoders.Replace("a", " "),
    decoders.Fuse(),
    decoders.Strip(" ", 1, 0),
    decoders.Metaspace(),
    decoders.ByteFallback(),
)


def test_a_sequence_of_steps_gives_the_text_of_tokenizers_or_is_refused():
    """Every sequence of up to three of the parts, on every text of up to three of the tokens."""
    tokens = ("a", "\u2581", "b\u2581")
    texts = [text for n in (1, 2, 3) for text in itertools.product(tokens, repeat=n)]
    known = 0
    for n in (1, 2, 3):
        for parts in itertools.product(PARTS, repeat=n):
            decoder = decoders.Sequence(list(parts))
            try:
                ours = token_decoder(json.loads(decoder.__getstate__()), "here")
            except DataError:
                continue
            known += 1
            for text in texts:
                first, *later = text
                data = ours.first_bytes(first) + b"".join(map(ours.later_bytes, later))
                if ours.strips and not ours.first_bytes(first):
                    # The blank is then cut off a later token, which the table of tokens sees to.
                    continue
                assert data.decode() == decoder.decode(list(text)), (parts, text)
    assert known > 50


# --- streams and continuations, of every kind of tokenizer


@pytest.fixture(scope="module")
def kinds(made, tokenizer, tmp_path_factory) -> dict[str, Tokenizer]:
    root = tmp_path_factory.mktemp("kinds")
    out: dict[str, Tokenizer] = {"ours": tokenizer} | {
        name: ours for name, (ours, _) in made.items()
    }
    for kind in KINDS:
        out[f"hf {kind}"] = import_tokenizer(make_folder(root / kind, kind), root / f"{kind}-out")
    marian = import_tokenizer(make_marian(root / "marian"), root / "marian-out")
    out |= {"marian": marian, "marian's reader": marian.reader}
    for name, family in (
        ("spiece.model", "T5Tokenizer"),
        ("sentencepiece.bpe.model", "XLMRobertaTokenizer"),
    ):
        (root / family).mkdir()
        # A model with a blank before a text, and without blanks that follow each other.
        (root / family / name).write_bytes((root / "marian" / "target.spm").read_bytes())
        (root / family / "tokenizer_config.json").write_text(
            json.dumps({"tokenizer_class": family, "eos_token": "</s>"})
        )
        out[family] = import_tokenizer(root / family, root / f"{family}-out")
    return out


def test_a_stream_after_a_prompt_adds_what_both_together_have_more(kinds):
    rng = random.Random(0)
    for name, t in kinds.items():
        for _ in range(150):
            ids = [rng.randrange(t.vocab_size) for _ in range(rng.randint(0, 9))]
            prompt = [rng.randrange(t.vocab_size) for _ in range(rng.randint(0, 4))]
            stream = StreamDecoder(t)
            shown = "".join(map(stream.push, prompt))
            rest = "".join(map(stream.push, ids)) + stream.flush()
            assert shown + rest == t.decode([*prompt, *ids]), name
            after = StreamDecoder(t, prompt_ids=prompt)
            assert (
                "".join(map(after.push, ids)) + after.flush()
                == continuation(t, prompt, ids)
                == rest
            ), name
            if "\ufffd" not in t.decode(prompt):
                assert t.decode(prompt) + rest == t.decode([*prompt, *ids]), name


def test_the_blank_before_a_text_is_left_out_only_at_its_start(kinds):
    t = kinds["hf metaspace"]
    the, cat = t.encode("the"), t.encode("cat")
    assert t.decode([*the, *cat]) == "the cat"
    assert continuation(t, the, cat) == " cat"
    assert continuation(t, [], cat) == continuation(t, [t.bos_id], cat) == "cat"
    assert continuation(t, [t.bos_id, *the], [*cat, t.eos_id]) == " cat"
    assert continuation(t, the, []) == ""
    with pytest.raises(DataError, match="this tokenizer has ids 0 to"):
        continuation(t, [t.vocab_size], [])
    with pytest.raises(DataError, match="this tokenizer has ids 0 to"):
        StreamDecoder(t).push(-1)


def test_a_character_that_the_prompt_begins_belongs_to_what_follows(kinds):
    t = kinds["ours"]
    ids = t.encode("a😀b")
    assert len(ids) == 6
    assert [continuation(t, ids[:n], ids[n:]) for n in range(1, 6)] == [
        "😀b",
        "😀b",
        "😀b",
        "😀b",
        "b",
    ]
    assert continuation(t, ids[:3], ids[3:4]) == "\ufffd"


def test_word_pieces_go_on_and_are_cleaned_up_after_a_prompt(made):
    ours, theirs = made["wordpiece"]
    token = theirs.token_to_id
    assert continuation(ours, [token("do")], [token("##ing"), token(".")]) == "ing."
    assert continuation(ours, [], [token("##ing"), token(".")]) == "##ing."
    assert continuation(ours, [token("do")], [token("n't"), token("do")]) == "n't do"


# --- what a post-processor adds is read from it, and not tried out on a letter


@pytest.mark.parametrize(
    ("processor", "before", "after"),
    [
        (None, (), ()),
        (processors.ByteLevel(), (), ()),
        (
            processors.TemplateProcessing(
                single="<1> $A <2>", pair="$A $B", special_tokens=[("<1>", 1), ("<2>", 2)]
            ),
            (1,),
            (2,),
        ),
        (
            processors.TemplateProcessing(
                single="$A <2> <1>", pair="$A $B", special_tokens=[("<1>", 1), ("<2>", 2)]
            ),
            (),
            (2, 1),
        ),
        (processors.BertProcessing(("<2>", 2), ("<1>", 1)), (1,), (2,)),
        (processors.RobertaProcessing(("<2>", 2), ("<1>", 1)), (1,), (2,)),
        (
            processors.Sequence(
                [processors.ByteLevel(), processors.BertProcessing(("<2>", 2), ("<1>", 1))]
            ),
            (1,),
            (2,),
        ),
    ],
)
def test_tokens_around_a_text_of_a_vocabulary_without_an_a(processor, before, after):
    tok = tokenizers.Tokenizer(models.BPE(vocab={"ж": 0, "<1>": 1, "<2>": 2}, merges=[]))
    if processor:
        tok.post_processor = processor
    assert around(tok, "here") == (before, after)
    assert tok.encode("ж").ids == [*before, 0, *after]


@pytest.mark.parametrize("single", ["$A <1> $A", "<1>", "$B <1>"])
def test_a_post_processor_that_does_more_is_refused(single):
    tok = tokenizers.Tokenizer(models.BPE(vocab={"ж": 0, "<1>": 1}, merges=[]))
    tok.post_processor = processors.TemplateProcessing(
        single=single, pair="$A $B", special_tokens=[("<1>", 1)]
    )
    with pytest.raises(
        DataError, match="'TemplateProcessing' does more than put tokens before and after a text"
    ):
        around(tok, "here")
