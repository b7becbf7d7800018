"""Small Hugging Face tokenizers of every kind, trained here on mixed text and written as a model
folder.
"""

from __future__ import annotations

import io
import json
import random
from pathlib import Path
from typing import Any

from mixed_text import mixed_lines

SPECIAL = ("<unk>", "<s>", "</s>", "<pad>", "<|im_start|>", "<|im_end|>")
BERT = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content']"
    " + '<|im_end|>' + '\\n' }}{% endfor %}{% if add_generation_prompt %}{{"
    " '<|im_start|>assistant\\n' }}{% endif %}"
)
KINDS = ("byte-level", "metaspace", "wordpiece", "unigram")


def make_tokenizer(kind: str) -> Any:
    """A ``tokenizers.Tokenizer``: GPT-2's kind, Llama 2's, BERT's or T5's."""
    from tokenizers import (
        AddedToken,
        Regex,
        Tokenizer,
        decoders,
        models,
        normalizers,
        pre_tokenizers,
        processors,
        trainers,
    )

    special = [
        AddedToken(text, special=True, normalized=False)
        for text in (BERT if kind == "wordpiece" else SPECIAL)
    ]
    if kind == "byte-level":
        tok = Tokenizer(models.BPE())
        cut = Regex(
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
            r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
        )
        tok.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(cut, "isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
        tok.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(
            vocab_size=1200, special_tokens=special, initial_alphabet=alphabet, show_progress=False
        )
    elif kind == "metaspace":
        tok = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
        tok.normalizer = normalizers.Sequence(
            [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
        )
        tok.decoder = decoders.Sequence(
            [
                decoders.Replace("▁", " "),
                decoders.ByteFallback(),
                decoders.Fuse(),
                decoders.Strip(" ", 1, 0),
            ]
        )
        bytes_ = [AddedToken(f"<0x{b:02X}>", special=False, normalized=False) for b in range(256)]
        trainer = trainers.BpeTrainer(
            vocab_size=1500,
            special_tokens=special + bytes_,
            limit_alphabet=300,
            max_token_length=12,
            show_progress=False,
        )
    elif kind == "wordpiece":
        tok = Tokenizer(models.WordPiece(unk_token="[UNK]"))
        tok.normalizer, tok.pre_tokenizer = (
            normalizers.BertNormalizer(),
            pre_tokenizers.BertPreTokenizer(),
        )
        tok.decoder = decoders.WordPiece()
        trainer = trainers.WordPieceTrainer(
            vocab_size=1200, special_tokens=special, limit_alphabet=400, show_progress=False
        )
    else:
        tok = Tokenizer(models.Unigram())
        tok.normalizer = normalizers.Sequence(
            [normalizers.Nmt(), normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")]
        )
        tok.pre_tokenizer, tok.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
        trainer = trainers.UnigramTrainer(
            vocab_size=900, special_tokens=special, unk_token="<unk>", show_progress=False
        )
    lines = mixed_lines(1500, seed=7)
    if kind == "unigram":
        # It has no trainer that leaves rare characters out.
        lines = ["".join(c for c in line if c < "\u0250") for line in lines]
    tok.train_from_iterator(lines, trainer)
    if kind == "metaspace":
        # As Llama 2's file has it: the bytes are pieces, and not tokens to be found in the text.
        value = json.loads(tok.to_str())
        value["added_tokens"] = [token for token in value["added_tokens"] if token["special"]]
        tok = Tokenizer.from_str(json.dumps(value))
    before, after = {"wordpiece": ("[CLS]", "[SEP]"), "unigram": ("", "</s>")}.get(
        kind, ("<s>", "")
    )
    around = [(text, tok.token_to_id(text)) for text in (before, after) if text]
    single = f"{before} $A {after}".strip()
    tok.post_processor = processors.TemplateProcessing(
        single=single, pair=f"{single} $B", special_tokens=around
    )
    return tok


def make_folder(folder: Path, kind: str, **config: Any) -> Path:
    """A folder with tokenizer.json and tokenizer_config.json, as ``save_pretrained`` writes them;
    ``config`` is put over the latter.
    """
    folder.mkdir(parents=True, exist_ok=True)
    make_tokenizer(kind).save(str(folder / "tokenizer.json"))
    if kind == "wordpiece":
        named = {
            "cls_token": "[CLS]",
            "sep_token": "[SEP]",
            "pad_token": "[PAD]",
            "unk_token": "[UNK]",
            "mask_token": "[MASK]",
        }
    else:
        named = {
            "bos_token": "<s>",
            "eos_token": "</s>",
            "unk_token": "<unk>",
            "pad_token": "<pad>",
        }
    values = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        **named,
        **config,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(values))
    return folder


def make_marian(folder: Path, **config: Any) -> Path:
    """A folder of Marian's files as OPUS-MT has them: a unigram model of each language, one
    vocabulary for both in another order.
    """
    import sentencepiece

    folder.mkdir(parents=True, exist_ok=True)
    lines = [
        line.translate(dict.fromkeys(map(ord, "\0\r\n"), " "))
        for line in mixed_lines(4000, seed=11)
    ]
    pieces: dict[str, None] = {}
    for name, size, side in (("source.spm", 850, lines[::2]), ("target.spm", 1000, lines[1::2])):
        out = io.BytesIO()
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(side),
            model_writer=out,
            vocab_size=size,
            character_coverage=0.98,
            minloglevel=2,
        )
        (folder / name).write_bytes(out.getvalue())
        model = sentencepiece.SentencePieceProcessor(model_proto=out.getvalue())
        pieces |= dict.fromkeys(model.IdToPiece(n) for n in range(3, size))
    # A piece of a model that the vocabulary lacks is unknown.
    inner = sorted(pieces)[:-5]
    random.Random(0).shuffle(inner)
    vocabulary = {
        piece: id for id, piece in enumerate(["</s>", "<unk>", *inner, ">>pt<<", ">>de<<", "<pad>"])
    }
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"source_lang": "en", "target_lang": "pt", "model_max_length": 512} | config)
    )
    return folder
