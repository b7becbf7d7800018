"""A GGUF file's tokenizer gives the ids of the tokenizer it was made from, and says what its
metadata lacks.
"""

from __future__ import annotations

import json

import numpy as np
import pytest
import sentencepiece
from gguf_builders import mixed_lines

from llm_jax.convert.families.gguf import KEEPING_BLANKS
from llm_jax.convert.gguf_pre_tokenizers import PRE_TOKENIZERS
from llm_jax.convert.gguf_tokenizer import tokenizer_json
from llm_jax.convert.gguf_vocabulary import chat_template, end_tokens, special_tokens
from llm_jax.types import DataError

tokenizers = pytest.importorskip(
    "tokenizers", reason="tokenizer.json is read by tokenizers: pip install tokenizers"
)

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, BYTE = 1, 2, 3, 4, 6


def metadata_of(tokens: list[str], types: list[int], others: dict) -> dict:
    keys = {"tokens": tokens, "token_type": np.array(types, np.int32)} | others
    return {f"tokenizer.ggml.{name}": value for name, value in keys.items()}


def byte_level(**others) -> dict:
    """A vocabulary that knows three merges and has a special token of each kind."""
    letters = sorted(set(tokenizers.pre_tokenizers.ByteLevel.alphabet()))
    tokens = ["<|end|>", *letters, "ab", "\u0120ab", "abab", "<think>", "   "]
    types = [CONTROL, *[NORMAL] * (len(tokens) - 3), USER_DEFINED, USER_DEFINED]
    keys = {
        "model": "gpt2",
        "pre": "gpt-2",
        "merges": ["a b", "\u0120 ab", "ab ab"],
        "eos_token_id": 0,
    }
    return metadata_of(tokens, types, keys | others)


def sentencepieces(**others) -> dict:
    """A few pieces with scores and all byte tokens."""
    tokens = [
        "<unk>",
        "<s>",
        "</s>",
        *[f"<0x{byte:02X}>" for byte in range(256)],
        "\u2581",
        "a",
        "b",
        "ab",
        "\u2581ab",
        "<sep>",
    ]
    types = [UNKNOWN, CONTROL, CONTROL, *[BYTE] * 256, *[NORMAL] * 5, USER_DEFINED]
    scores = np.array([*[0.0] * 259, -3, -4, -5, -1, -2, 0], np.float32)
    keys = {
        "model": "llama",
        "scores": scores,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "unknown_token_id": 0,
    }
    return metadata_of(tokens, types, keys | others)


def without(metadata: dict, name: str) -> dict:
    return {key: value for key, value in metadata.items() if key != f"tokenizer.ggml.{name}"}


def loaded(metadata: dict, **kwargs):
    return tokenizers.Tokenizer.from_str(json.dumps(tokenizer_json(metadata, **kwargs)))


def pieces(metadata: dict, text: str, special: bool = False) -> list[str]:
    return loaded(metadata).encode(text, add_special_tokens=special).tokens


# Literal cuts, by what the published tokenizers do.
CUTS = [
    ("gpt-2", "it's 12  345\n", ["it", "'s", " 12", " ", " 345", "\n"]),
    ("gpt-2", "IT'S", ["IT", "'", "S"]),
    ("smollm", "a  12", ["a", "  ", "1", "2"]),
    ("smollm", "x1.5 y", ["x", "1", ".", "5", " y"]),
    ("command-r", "42 e\u0301", ["4", "2", " \u00e9"]),
    ("llama-bpe", "I'LL pay 12345\n\nok", ["I", "'LL", " pay", " ", "123", "45", "\n\n", "ok"]),
    ("dbrx", "(foo) 1234", ["(foo", ")", " ", "123", "4"]),
    ("qwen2", "a12 ..\n", ["a", "1", "2", " ..\n"]),
    ("tekken", "HelloWORLD a/\n12", ["Hello", "WORLD", " a", "/\n", "1", "2"]),
    ("gpt-4o", "HelloWorld's 1234", ["Hello", "World's", " ", "123", "4"]),
    ("deepseek-v3", "你好abc12345 .x", ["你好", "abc", "123", "45", " .", "x"]),
    ("default", "a=b 1234567", ["a", "=", "b", " ", "123", "456", "7"]),
]


@pytest.mark.parametrize(("pre", "text", "wanted"), CUTS)
def test_cuts(pre, text, wanted):
    tokenizer = loaded(byte_level(pre=pre))
    normal = tokenizer.normalizer.normalize_str(text) if tokenizer.normalizer else text
    assert [
        normal[start:end] for _, (start, end) in tokenizer.pre_tokenizer.pre_tokenize_str(normal)
    ] == wanted


def test_added_tokens_of_phi_3_take_the_blanks_after_them():
    tokens = [
        "<unk>",
        "<s>",
        "</s>",
        *[f"<0x{byte:02X}>" for byte in range(256)],
        "\u2581",
        "a",
        "<|endoftext|>",
        "<|user|>",
    ]
    types = [UNKNOWN, CONTROL, USER_DEFINED, *[BYTE] * 256, NORMAL, NORMAL, CONTROL, CONTROL]
    keys = {
        "model": "llama",
        "scores": np.zeros(len(tokens), np.float32),
        "bos_token_id": 1,
        "add_space_prefix": False,
    }
    metadata, keeping = metadata_of(tokens, types, keys), KEEPING_BLANKS["phi3"]

    def cut(text, **more):
        return loaded(metadata, **more).encode(text, add_special_tokens=False).tokens

    assert cut("<|user|>\n a</s> a", keeping=keeping) == ["<|user|>\n ", "a", "</s> ", "a"]
    assert cut("<s> a<|endoftext|> a", keeping=keeping) == [
        "<s>",
        "\u2581",
        "a",
        "<|endoftext|>",
        "\u2581",
        "a",
    ]
    assert cut("<|user|> a") == ["<|user|>", "\u2581", "a"]
    assert not any(
        token["rstrip"] for token in tokenizer_json(byte_level(), keeping=keeping)["added_tokens"]
    )


@pytest.mark.parametrize("pre", PRE_TOKENIZERS)
def test_every_cut_keeps_all_of_a_text(pre):
    tokenizer = loaded(byte_level(pre=pre))
    for line in mixed_lines(300):
        normal = tokenizer.normalizer.normalize_str(line) if tokenizer.normalizer else line
        assert tokenizer.decode(tokenizer.encode(line).ids, skip_special_tokens=False) == normal


def test_cuts_are_those_of_transformers():
    theirs = pytest.importorskip(
        "transformers.integrations.gguf.gguf_tokenizer_mapping",
        reason="compares with transformers 5",
    )
    both = set(theirs.GGUF_PRE_TOKENIZER_SPLITS) & set(PRE_TOKENIZERS)
    assert {"llama-bpe", "dbrx", "tekken", "qwen2", "gpt-4o"} <= both
    assert {name: PRE_TOKENIZERS[name].cuts for name in both} == {
        name: (theirs.GGUF_PRE_TOKENIZER_SPLITS[name],) for name in both
    }


def test_merges_and_added_tokens():
    assert pieces(byte_level(), "abab abab") == ["abab", "\u0120ab", "ab"]
    assert pieces(byte_level(), "a<|end|>b<think>   a") == [
        "a",
        "<|end|>",
        "b",
        "<think>",
        "   ",
        "a",
    ]
    tokenizer = loaded(byte_level())
    assert tokenizer.decode(tokenizer.encode("a<|end|><think>   é").ids) == "a<think>   é"
    assert {
        token.content: token.special for token in tokenizer.get_added_tokens_decoder().values()
    } == {"<|end|>": True, "<think>": False, "   ": False}


def test_llama_3_takes_a_word_that_is_a_token_whole():
    # "abab" is a token that no merge makes.
    changes = {"merges": ["a b"], "bos_token_id": 0}
    assert pieces(byte_level(pre="dbrx", **changes), "abab") == ["ab", "ab"]
    assert pieces(byte_level(pre="llama-bpe", **changes), "abab") == ["abab"]


@pytest.mark.parametrize("pre", ["gpt-2", "smollm", "llama-bpe", "default"])
def test_ids_of_a_trained_byte_level_tokenizer(pre):
    lines = mixed_lines(1500)
    first = loaded(byte_level(pre=pre))
    original = tokenizers.Tokenizer(tokenizers.models.BPE())
    original.pre_tokenizer, original.decoder = first.pre_tokenizer, first.decoder
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=1000,
        special_tokens=["<|im_end|>"],
        initial_alphabet=alphabet,
        show_progress=False,
    )
    original.train_from_iterator(lines[:1000], trainer)
    model = json.loads(original.to_str())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].get)
    merges = [" ".join(merge) for merge in model["merges"]]
    types = [CONTROL] + [NORMAL] * (len(tokens) - 1)
    ours = loaded(metadata_of(tokens, types, {"model": "gpt2", "pre": pre, "merges": merges}))
    assert [e.ids for e in ours.encode_batch(lines)] == [
        e.ids for e in original.encode_batch(lines)
    ]
    assert [
        ours.decode(e.ids, skip_special_tokens=False) for e in ours.encode_batch(lines)
    ] == lines


@pytest.mark.parametrize("prefix", [True, False])
def test_ids_of_a_trained_sentencepiece_model(tmp_path, prefix):
    lines = mixed_lines(2000)
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(line.replace("\0", "") for line in lines),
        model_prefix=str(tmp_path / "m"),
        model_type="bpe",
        vocab_size=3000,
        character_coverage=0.98,
        byte_fallback=True,
        normalization_rule_name="identity",
        add_dummy_prefix=prefix,
        remove_extra_whitespaces=False,
        split_digits=True,
        allow_whitespace_only_pieces=True,
        minloglevel=2,
    )
    model = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "m.model"))
    ids = range(model.vocab_size())
    kinds = (
        (UNKNOWN, model.is_unknown),
        (CONTROL, model.is_control),
        (BYTE, model.is_byte),
        (NORMAL, lambda _: True),
    )
    types = [next(kind for kind, holds in kinds if holds(id)) for id in ids]
    scores = np.array([model.get_score(id) for id in ids], np.float32)
    keys = {
        "model": "llama",
        "scores": scores,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "unknown_token_id": 0,
        "add_space_prefix": prefix,
    }
    metadata = metadata_of([model.id_to_piece(id) for id in ids], types, keys)
    ours = loaded(metadata)
    assert any(id in range(3, 259) for line in lines for id in model.encode(line)), (
        "no line needs a byte token"
    )
    for line in [*lines, "", " ", "  a", "a  ", "\u2581a"]:
        ids = model.encode(line)
        assert ours.encode(line, add_special_tokens=False).ids == ids
        assert ours.decode(ids) == model.decode(ids)


def test_sentencepiece_scores_and_bytes():
    assert pieces(sentencepieces(), "abab") == ["\u2581ab", "ab"]
    # "ab" has the best score, so it is made before any other pair is looked at.
    assert pieces(sentencepieces(), "aab") == ["\u2581", "a", "ab"]
    assert pieces(sentencepieces(), "é\n") == ["\u2581", "<0xC3>", "<0xA9>", "<0x0A>"]
    assert pieces(sentencepieces(add_space_prefix=False), "ab<sep>a") == ["ab", "<sep>", "a"]


def test_beginning_and_end_go_around_a_text():
    assert pieces(sentencepieces(), "ab", special=True) == ["<s>", "\u2581ab"]
    assert pieces(sentencepieces(add_bos_token=False, add_eos_token=True), "ab", special=True) == [
        "\u2581ab",
        "</s>",
    ]
    both = loaded(sentencepieces(add_eos_token=True)).encode("ab", "ab").tokens
    assert both == ["<s>", "\u2581ab", "</s>", "<s>", "\u2581ab", "</s>"]
    assert pieces(byte_level(bos_token_id=0), "ab", special=True) == ["ab"]
    assert pieces(byte_level(bos_token_id=0, pre="llama-bpe"), "ab", special=True) == [
        "<|end|>",
        "ab",
    ]


def control(*names: str, **others) -> dict:
    """A vocabulary with these control tokens from id 1 on."""
    metadata = byte_level(**others)
    metadata["tokenizer.ggml.tokens"][1:1] = names
    types = metadata["tokenizer.ggml.token_type"].tolist()
    metadata["tokenizer.ggml.token_type"] = np.array(
        [types[0], *[CONTROL] * len(names), *types[1:]], np.int32
    )
    return metadata


def test_every_token_that_ends_generation_is_found():
    assert end_tokens(sentencepieces()) == (2,)
    assert end_tokens(byte_level()) == (0,)
    assert end_tokens(control("<|a|>", "<|b|>", eot_token_id=2, eom_token_id=1)) == (0, 2, 1)
    assert end_tokens(without(control("<|a|>", eot_token_id=1), "eos_token_id")) == (1, 0)
    # A name is enough, whatever type the file gives the token: the last of byte_level's tokens are
    # user-defined.
    assert end_tokens(control("<|a|>", "<|eot_id|>", "<|eom_id|>", eos_token_id=1)) == (1, 0, 2, 3)
    metadata = control("<|a|>", eos_token_id=1)
    metadata["tokenizer.ggml.tokens"][-2] = "<|im_end|>"
    named = len(metadata["tokenizer.ggml.tokens"]) - 2
    assert end_tokens(metadata) == (1, 0, named)
    (added,) = [
        token for token in tokenizer_json(metadata, "gpt-2")["added_tokens"] if token["id"] == named
    ]
    assert added["special"]


def test_a_token_between_messages_of_one_answer_does_not_end_it():
    assert end_tokens(control("<|return|>", "<|call|>", eos_token_id=1)) == (1, 2)
    assert end_tokens(control("<|return|>", eos_token_id=1)) == (1, 0)
    assert end_tokens(control("<|return|>", "<|call|>", eos_token_id=0)) == (0, 1, 2)


@pytest.mark.parametrize("name", ["eos", "eot", "eom"])
def test_an_end_that_is_no_id_is_refused(name):
    with pytest.raises(
        DataError, match=f"tokenizer.ggml.{name}_token_id is 9999, and must be an id from 0 to"
    ):
        end_tokens(byte_level(**{f"{name}_token_id": 9999}))


def test_special_tokens_are_what_the_file_says():
    assert special_tokens(sentencepieces()) == (1, 2, 0, None, True, False)
    assert special_tokens(
        sentencepieces(padding_token_id=2, add_bos_token=False, add_eos_token=True)
    ) == (1, 2, 0, 2, False, True)
    assert special_tokens(byte_level()) == (None, 0, None, None, False, False)
    assert special_tokens(byte_level(pre="tekken")) == (None, 0, None, None, False, False)
    assert special_tokens(byte_level(pre="tekken", bos_token_id=0)).add_bos
    assert special_tokens(without(byte_level(bos_token_id=0), "pre"), pre="tekken").add_bos


def test_chat_template():
    assert chat_template({}) is None
    assert chat_template({"tokenizer.chat_template": "{{ messages }}"}) == "{{ messages }}"
    with pytest.raises(
        DataError, match=r"tokenizer.chat_template is list \[1\], and must be a string"
    ):
        chat_template({"tokenizer.chat_template": [1]})


def test_an_empty_token_is_no_match_for_every_text():
    metadata = byte_level()
    metadata["tokenizer.ggml.tokens"][0] = ""
    assert pieces(metadata, "ab") == ["ab"]


def test_a_file_without_pre_tokenizer_takes_one():
    bare = without(byte_level(), "pre")
    message = (
        r"no tokenizer.ggml.pre, so how text is split into words is unknown; set pre"
        r" \(--pre\) to one of default, gpt-2, "
    )
    with pytest.raises(DataError, match=message):
        tokenizer_json(bare)
    assert tokenizer_json(bare, pre="gpt-2") == tokenizer_json(byte_level())


SHORT = np.zeros(3, np.int32)
REFUSED = [
    (byte_level(model="rwkv"), r"tokenizer.ggml.model 'rwkv' is unknown; known: gpt2, llama$"),
    (without(byte_level(), "model"), r"tokenizer.ggml.model None is unknown"),
    (byte_level(model=["gpt2"]), r"tokenizer.ggml.model \['gpt2'\] is unknown"),
    (
        byte_level(pre="gpt-9"),
        r"tokenizer.ggml.pre 'gpt-9' is unknown; known: default, gpt-2, .*smollm.*deepseek-v3$",
    ),
    (byte_level(pre=3), r"tokenizer.ggml.pre must be a string, and is 3"),
    (
        without(byte_level(), "tokens"),
        (
            r"tokenizer.ggml.tokens must be a list of strings, and is None; convert the model to"
            r" GGUF again"
        ),
    ),
    (
        without(byte_level(), "merges"),
        r"tokenizer.ggml.merges must be a list of strings, and is None",
    ),
    (
        byte_level(merges=["a b", "a xyz"]),
        r"tokenizer.ggml.merges 1, 'a xyz': 'xyz' is not in the vocabulary",
    ),
    (byte_level(merges=["ab"]), r"tokenizer.ggml.merges 0, 'ab': '' is not in the vocabulary"),
    (
        byte_level(token_type=SHORT),
        (
            r"tokenizer.ggml.token_type must be an array of 262 integers, one for each token, and"
            r" is array\(\[0, 0, 0\]"
        ),
    ),
    (
        without(byte_level(), "token_type"),
        "token_type must be an array of 262 integers, one for each token, and is None",
    ),
    (byte_level(tokens=["a"] * 262), r"tokens 0 and 1 are both 'a'"),
    (
        byte_level(eos_token_id=262),
        r"tokenizer.ggml.eos_token_id is 262, and must be an id from 0 to 261",
    ),
    (byte_level(eos_token_id=True), r"tokenizer.ggml.eos_token_id is True, and must be an id"),
    (
        byte_level(add_bos_token=True),
        r"tokenizer.ggml.add_bos_token is true, and there is no tokenizer.ggml.bos_token_id",
    ),
    (byte_level(add_eos_token=1), r"tokenizer.ggml.add_eos_token must be true or false, and is 1"),
    (
        without(sentencepieces(), "scores"),
        r"tokenizer.ggml.scores must be an array of 265 floats, one for each token, and is None",
    ),
    (
        sentencepieces(scores=np.full(265, np.nan)),
        r"tokenizer.ggml.scores must be an array of 265 floats",
    ),
    (
        sentencepieces(precompiled_charsmap=np.zeros(9, np.uint8)),
        r"precompiled_charsmap, a normalization that is not supported",
    ),
    (
        sentencepieces(remove_extra_whitespaces=True),
        r"remove_extra_whitespaces or precompiled_charsmap",
    ),
    (
        without(sentencepieces(tokens=[f"t{i}" for i in range(265)]), "unknown_token_id"),
        r"neither all byte tokens <0x00>…<0xFF> nor a",
    ),
    (
        sentencepieces(tokens=["a" * (2000 + i) for i in range(265)]),
        r"token 259 has 2,259 characters, and at most 1,024 are allowed",
    ),
]


@pytest.mark.parametrize(("metadata", "words"), REFUSED)
def test_what_does_not_hold_together_is_named(metadata, words):
    with pytest.raises(DataError, match=words):
        tokenizer_json(metadata)
