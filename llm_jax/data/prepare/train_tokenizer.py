"""Training a SentencePiece vocabulary from a bounded sample of the text."""

from __future__ import annotations

import hashlib
import heapq
import io
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Literal, NamedTuple

from llm_jax.data.corpus.clean import CleanOptions, Normalization, clean
from llm_jax.data.corpus.formats import InvalidUtf8
from llm_jax.data.corpus.sources import expand, read_documents
from llm_jax.data.prepare.round_trip import check_round_trip
from llm_jax.data.prepare.symbols import SPECIAL, checked_symbols, cleaned_away
from llm_jax.files import TOKENIZER, check_folder, make_folder, write_atomic
from llm_jax.progress import note, progress
from llm_jax.ranges import Bytes, Count, Natural, PositiveShare, Seed, checked
from llm_jax.tokenizers.manifest import IMPORTED
from llm_jax.tokenizers.sentencepiece_model import BLANK
from llm_jax.tokenizers.sentencepiece_tokenizer import META_FILE, MODEL_FILE, SentencePieceTokenizer
from llm_jax.types import DataError

_PIECE = 4096
# Fixed, since the unigram trainer's sums depend on it: the same text gives the same model on every
# machine.
_THREADS = 8


@checked
def train_tokenizer(
    input: tuple[str, ...],
    out: Path,
    vocab_size: Count = 4096,
    model_type: Literal["bpe", "unigram"] = "bpe",
    user_symbols: tuple[str, ...] = (),
    control_symbols: tuple[str, ...] = (),
    sentinels: Natural = 0,
    sample_bytes: Bytes = 64 << 20,
    seed: Seed = 0,
    character_coverage: PositiveShare = 0.9995,
    text_field: str = "text",
    encoder_field: str = "",
    invalid_utf8: InvalidUtf8 = "repair",
    normalization: Normalization = "nfc",
    strip_control: bool = True,
    whitespace: bool = True,
    lower_case: bool = False,
    remove_punctuation: bool = False,
    overwrite: bool = False,
) -> SentencePieceTokenizer:
    """Train a SentencePiece vocabulary on text files and write it to a folder.

    The cleaning options only decide what the vocabulary is trained on; the tokenizer itself changes
    no text. Give `data prepare` the same.

    Training ends by encoding and decoding some thousand lines of the text, and of many scripts and
    odd characters. A vocabulary that does not give all of it back is not written.

    Args:
        input: text files, folders or patterns (.txt .md .jsonl, each also .gz or .zst, and
            .parquet).
        out: folder to write tokenizer.model and tokenizer.json to.
        vocab_size: number of tokens, with the 4 special and 256 byte tokens.
        model_type: bpe merges frequent pairs; unigram prunes a large vocabulary by likelihood.
        user_symbols: strings that always are one token of their own, such as <|user|>; they may
            have blanks in them.
        control_symbols: strings that stand for no text, such as <mask>; no text is encoded as one
            of them.
        sentinels: number of control symbols <extra_id_0>, <extra_id_1>, … that mark cut-out spans
            (data.objective spans).
        sample_bytes: at most this much text is trained on, taken evenly from all documents.
        seed: which sample is taken when there is more text than sample_bytes.
        character_coverage: share of all characters that get tokens of their own; the rarest are
            written as bytes.
        text_field: field of .jsonl lines or column of .parquet files that holds the text.
        encoder_field: field of a second text, of pairs; both are trained on.
        invalid_utf8: repair replaces invalid bytes by U+FFFD, refuse stops at the first.
        normalization: Unicode form, nfc, nfkc or none.
        strip_control: drop control and meaningless zero-width characters.
        whitespace: unify line ends, strip blanks at line ends, collapse runs of blank lines.
        lower_case: lower-case everything.
        remove_punctuation: drop all punctuation.
        overwrite: replace a tokenizer that is already there.

    Raises:
        DataError: no usable text, a symbol that cannot be one token, a vocabulary larger (or
            smaller) than the text allows or that loses text, or ``out`` cannot be written.
    """
    out = Path(out)
    check_folder(out, replaces=TOKENIZER, overwrite=overwrite)
    if model_type not in ("bpe", "unigram"):
        raise DataError(f"model_type={model_type!r}; it must be 'bpe' or 'unigram'")
    user, control = checked_symbols(user_symbols, control_symbols, sentinels)
    paths = expand(input)
    make_folder(out)
    options = CleanOptions(normalization, strip_control, whitespace, lower_case, remove_punctuation)
    read = read_documents(
        paths, text_field=text_field, encoder_field=encoder_field, invalid_utf8=invalid_utf8
    )
    texts = (
        clean(text, options)
        for d in read
        for text in ((d.text, d.encoder_text) if encoder_field else (d.text,))
    )
    size = sum(p.stat().st_size for p in paths)
    with progress("reading text", total=None, unit="B") as bar:
        lines, seen = sample(_counted(texts, bar), sample_bytes, seed)
    if not lines:
        raise DataError(
            f"no text left to train on after cleaning {len(paths)} files ({size} bytes); check the"
            " cleaning options"
        )
    used = sum(len(line.encode()) for line in lines)
    note(
        f"training a {model_type} vocabulary of {vocab_size} on {used / 1e6:.1f} of"
        f" {seen / 1e6:.1f} MB of text"
    )
    if gone := cleaned_away(user, options):
        note(
            f"user_symbols: cleaning changes {', '.join(map(repr, gone))}, so no cleaned text has"
            " them; other text may"
        )
    model = _train(lines, _Recipe(vocab_size, model_type, user, control, character_coverage))
    tokenizer = SentencePieceTokenizer(out / MODEL_FILE, model)
    check_round_trip(tokenizer, lines, user)
    meta = {
        "kind": "sentencepiece",
        "model_type": model_type,
        "vocab_size": vocab_size,
        "special": SPECIAL,
        "user_symbols": list(user),
        **({"control_symbols": list(control)} if control else {}),
        "sha256": hashlib.sha256(model).hexdigest(),
        "sample": {"bytes": used, "of_bytes": seen, "seed": seed},
        "clean": asdict(options),
    }
    # An imported tokenizer would be opened in place of what is written here, and its model without
    # its record as one of ours. The model is written last, so that a kill leaves no tokenizer and
    # not another one.
    if (out / IMPORTED).exists():
        (out / MODEL_FILE).unlink(missing_ok=True)
        (out / IMPORTED).unlink()
    write_atomic(out / META_FILE, (json.dumps(meta, indent=2, ensure_ascii=False) + "\n").encode())
    write_atomic(out / MODEL_FILE, model)
    return tokenizer


def _counted(texts: Iterable[str], bar) -> Iterator[str]:
    for text in texts:
        bar.advance(len(text))
        yield text


def sample(texts: Iterable[str], sample_bytes: int, seed: int) -> tuple[list[str], int]:
    """Lines for training, at most ``sample_bytes`` of UTF-8, and the bytes there were in all.

    Every text is cut into pieces of a few lines; those with the smallest hash of (seed, position)
    stay, in their order. So the sample is spread evenly over all documents, depends on the seed and
    the text only, and never holds more than ``sample_bytes``.
    """
    heap: list[tuple[int, int, str, int]] = []
    kept = seen = index = 0
    for text in texts:
        for piece in _pieces(text):
            size = len(piece.encode())
            key = hashlib.blake2b(f"{seed}:{index}".encode(), digest_size=8).digest()
            heapq.heappush(heap, (-int.from_bytes(key, "big"), index, piece, size))
            seen, kept, index = seen + size, kept + size, index + 1
            while kept > sample_bytes and len(heap) > 1:
                kept -= heapq.heappop(heap)[3]
    ordered = sorted(heap, key=lambda entry: entry[1])
    return [line for _, _, piece, _ in ordered for line in piece.split("\n") if line], seen


def _pieces(text: str) -> Iterator[str]:
    """The text in pieces of about 4 kB, cut at line ends, else at blanks, else anywhere."""
    at = 0
    while at < len(text):
        end = min(at + _PIECE, len(text))
        if end < len(text):
            cut = max(text.rfind("\n", at + 1, end), text.rfind(" ", at + _PIECE // 2, end))
            end = cut if cut > at else end
        yield text[at:end]
        at = end


class _Recipe(NamedTuple):
    """What a vocabulary is to be; ``train_tokenizer`` describes the fields."""

    vocab_size: int
    model_type: str
    user_symbols: tuple[str, ...]
    control_symbols: tuple[str, ...]
    character_coverage: float


def _train(lines: list[str], recipe: _Recipe) -> bytes:
    """A model in which the blank is a piece, however rare it is in the text.

    Without such a piece SentencePiece writes a blank as the bytes of U+2581. The piece is asked for
    only where it would be missing, since the model file records what was asked for, and so gets
    another fingerprint.
    """
    blanks = sum(line.count(" ") for line in lines)
    characters = sum(map(len, lines))
    if " " in recipe.user_symbols:
        return _trained(lines, recipe)
    if blanks > (1 - recipe.character_coverage) * characters:
        model = _trained(lines, recipe)
        # Every blank of the text may be in a user symbol.
        if SentencePieceTokenizer("", model).lossless:
            return model
    return _trained(lines, recipe, required_chars=BLANK)


def _trained(lines: list[str], recipe: _Recipe, **options: str) -> bytes:
    import sentencepiece

    model = io.BytesIO()
    # U+2581 would read as a blank and NUL is refused by the trainer; both are encoded by their
    # bytes anyway.
    lines = [line.replace(BLANK, " ").replace("\0", " ") for line in lines]
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(lines),
            model_writer=model,
            vocab_size=recipe.vocab_size,
            model_type=recipe.model_type,
            # They are looked for in text whose blanks are written as U+2581 already.
            user_defined_symbols=[symbol.replace(" ", BLANK) for symbol in recipe.user_symbols],
            control_symbols=list(recipe.control_symbols),
            character_coverage=recipe.character_coverage,
            byte_fallback=True,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            add_dummy_prefix=False,
            allow_whitespace_only_pieces=True,
            split_digits=True,
            max_sentence_length=1 << 20,
            num_threads=_THREADS,
            pad_id=0,
            unk_id=1,
            bos_id=2,
            eos_id=3,
            pad_piece="<pad>",
            unk_piece="<unk>",
            bos_piece="<s>",
            eos_piece="</s>",
            minloglevel=2,
            **options,
        )
    except (RuntimeError, OSError) as error:
        raise _explained(str(error), recipe.vocab_size) from error
    return model.getvalue()


def _explained(message: str, vocab_size: int) -> Exception:
    if found := re.search(r"Please set it to a value <= (\d+)", message):
        return DataError(
            f"vocab_size={vocab_size} is larger than this text allows: at most {found[1]}; lower it"
            " or give more text"
        )
    if found := re.search(r"(\d+) vs (\d+)", message):
        return DataError(
            f"vocab_size={vocab_size} is too small: the bytes, special tokens, symbols and"
            f" characters of this text need {found[2]}; raise it or lower character_coverage"
        )
    return DataError(f"SentencePiece could not train on this text: {message}")
