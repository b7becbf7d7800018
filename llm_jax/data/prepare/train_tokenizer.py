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
from typing import Any, Literal, NamedTuple

from llm_jax.data.corpus.clean import CleanOptions, Normalization, clean
from llm_jax.data.corpus.sources import expand, read_documents
from llm_jax.data.corpus.utf8 import InvalidUtf8
from llm_jax.data.prepare.round_trip import check_round_trip
from llm_jax.data.prepare.symbols import SPECIAL, checked_symbols, cleaned_away
from llm_jax.files import TOKENIZER, check_folder, make_folder, write_atomic
from llm_jax.progress import Bar, note, progress
from llm_jax.ranges import Bytes, Count, Natural, PositiveShare, Seed, checked
from llm_jax.storage.paths import path_of
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
    *,
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

    The cleaning options apply to the text that the vocabulary is trained on; the tokenizer itself
    does not change text. Give `data prepare` the same options.

    After training, some thousand lines of the text, and lines of many scripts and unusual
    characters, are encoded and decoded. A vocabulary that does not return all of them unchanged is
    not written.

    Args:
        input: text files, folders or patterns (.txt .md .jsonl, each also .gz or .zst, and
            .parquet).
        out: folder to write tokenizer.model and tokenizer.json to.
        vocab_size: number of tokens, with the 4 special and 256 byte tokens.
        model_type: bpe merges frequent pairs; unigram prunes a large vocabulary by likelihood.
        user_symbols: strings that are always encoded as one token, such as <|user|>; they may
            contain blanks.
        control_symbols: tokens that stand for no text, such as <mask>; no text is encoded as one
            of them.
        sentinels: number of control symbols <extra_id_0>, <extra_id_1>, … that mark cut-out spans
            (data.objective spans).
        sample_bytes: train on at most this much text, taken evenly from all documents.
        seed: decides the sample when there is more text than sample_bytes.
        character_coverage: share of all characters that have tokens of their own; the rarest are
            encoded as bytes.
        text_field: field of .jsonl lines or column of .parquet files that holds the text.
        encoder_field: for pairs, field of the second text; both texts are trained on.
        invalid_utf8: repair replaces invalid bytes by U+FFFD, refuse stops at the first.
        normalization: Unicode form, nfc, nfkc or none.
        strip_control: drop control characters and meaningless zero-width characters.
        whitespace: unify line ends, strip blanks at line ends, collapse runs of blank lines.
        lower_case: lower-case everything.
        remove_punctuation: drop all punctuation.
        overwrite: replace a tokenizer that is already there.

    Returns:
        The tokenizer.

    Raises:
        DataError: no usable text, a symbol that cannot be one token, a vocabulary that is larger
            or smaller than the text allows or that loses text, or ``out`` cannot be written.
    """
    out = path_of(out)
    check_folder(out, replaces=TOKENIZER, overwrite=overwrite)
    if model_type not in ("bpe", "unigram"):
        raise DataError(f"model_type={model_type!r}; it must be 'bpe' or 'unigram'")
    user, control = checked_symbols(user_symbols, control_symbols, sentinels)
    recipe = _Recipe(vocab_size, model_type, user, control, character_coverage)
    cleaning = CleanOptions(
        normalization, strip_control, whitespace, lower_case, remove_punctuation
    )
    paths = expand(input)
    make_folder(out)
    documents = read_documents(
        paths, text_field=text_field, encoder_field=encoder_field, invalid_utf8=invalid_utf8
    )
    texts = (clean(text, cleaning) for document in documents for text in document.texts)
    with progress("reading text", total=None, unit="B") as bar:
        lines, seen = sample(_counted(texts, bar), sample_bytes, seed)
    _check_not_empty(lines, paths)
    used = sum(len(line.encode()) for line in lines)
    note(
        f"training a {model_type} vocabulary of {vocab_size} on {used / 1e6:.1f} of"
        f" {seen / 1e6:.1f} MB of text"
    )
    _note_cleaned_away(user, cleaning)
    model = _train(lines, recipe)
    tokenizer = SentencePieceTokenizer(out / MODEL_FILE, model)
    check_round_trip(tokenizer, lines, user)
    meta = {
        **recipe.meta,
        "sha256": hashlib.sha256(model).hexdigest(),
        "sample": {"bytes": used, "of_bytes": seen, "seed": seed},
        "clean": asdict(cleaning),
    }
    _write(out, model, meta)
    return tokenizer


def _check_not_empty(lines: list[str], paths: list[Path]) -> None:
    if not lines:
        size = sum(path.stat().st_size for path in paths)
        raise DataError(
            f"no text left to train on after cleaning {len(paths)} files ({size} bytes); check the"
            " cleaning options"
        )


def _note_cleaned_away(user_symbols: tuple[str, ...], cleaning: CleanOptions) -> None:
    changed = cleaned_away(user_symbols, cleaning)
    if changed:
        note(
            f"user_symbols: cleaning changes {', '.join(map(repr, changed))}, so no cleaned text"
            " has them; other text may"
        )


def _write(out: Path, model: bytes, meta: dict[str, Any]) -> None:
    """Write the model and its record; replaces an imported tokenizer."""
    # An imported tokenizer's manifest has precedence over these files. Without the manifest, the
    # imported model would pass for one that was trained here. The model is written last, so that a
    # kill leaves no tokenizer rather than a wrong one.
    if (out / IMPORTED).exists():
        (out / MODEL_FILE).unlink(missing_ok=True)
        (out / IMPORTED).unlink()
    write_atomic(out / META_FILE, (json.dumps(meta, indent=2, ensure_ascii=False) + "\n").encode())
    write_atomic(out / MODEL_FILE, model)


def _counted(texts: Iterable[str], bar: Bar) -> Iterator[str]:
    for text in texts:
        bar.advance(len(text))
        yield text


def sample(texts: Iterable[str], sample_bytes: int, seed: int) -> tuple[list[str], int]:
    """Lines for training, spread evenly over all texts.

    Every text is cut into pieces of a few lines. The pieces with the smallest hashes of (seed,
    position) are kept, in their order, so the sample is a function of the seed and the text only.

    Args:
        texts: read once; no more than ``sample_bytes`` are held in memory.
        sample_bytes: the most bytes of UTF-8 to keep.
        seed: decides which pieces are kept.

    Returns:
        The lines, and the bytes of all texts.
    """
    heap: list[tuple[int, int, str, int]] = []
    kept = 0
    seen = 0
    pieces = (piece for text in texts for piece in _pieces(text))
    for index, piece in enumerate(pieces):
        size = len(piece.encode())
        key = hashlib.blake2b(f"{seed}:{index}".encode(), digest_size=8).digest()
        heapq.heappush(heap, (-int.from_bytes(key, "big"), index, piece, size))
        seen += size
        kept += size
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
    """Settings of a vocabulary; ``train_tokenizer`` describes the fields."""

    vocab_size: int
    model_type: str
    user_symbols: tuple[str, ...]
    control_symbols: tuple[str, ...]
    character_coverage: float

    @property
    def meta(self) -> dict[str, Any]:
        """The settings as tokenizer.json records them."""
        control = {"control_symbols": list(self.control_symbols)} if self.control_symbols else {}
        return {
            "kind": "sentencepiece",
            "model_type": self.model_type,
            "vocab_size": self.vocab_size,
            "special": SPECIAL,
            "user_symbols": list(self.user_symbols),
            **control,
        }


def _train(lines: list[str], recipe: _Recipe) -> bytes:
    """A model with a piece for the blank, however rare the blank is in the text.

    Without such a piece, SentencePiece encodes a blank as the bytes of U+2581. The piece is
    required explicitly only where it would be missing, because the model file records the
    requirement and so would have another fingerprint.
    """
    blanks = sum(line.count(" ") for line in lines)
    characters = sum(map(len, lines))
    if " " in recipe.user_symbols:
        return _trained(lines, recipe)
    if blanks > (1 - recipe.character_coverage) * characters:
        model = _trained(lines, recipe)
        # All blanks of the text may be within user symbols.
        if SentencePieceTokenizer("", model).lossless:
            return model
    return _trained(lines, recipe, required_chars=BLANK)


def _trained(lines: list[str], recipe: _Recipe, **options: Any) -> bytes:
    import sentencepiece

    model = io.BytesIO()
    # The trainer takes U+2581 for a blank and refuses NUL; both are encoded as bytes in any case.
    lines = [line.replace(BLANK, " ").replace("\0", " ") for line in lines]
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(lines),
            model_writer=model,
            vocab_size=recipe.vocab_size,
            model_type=recipe.model_type,
            # The trainer searches for them in text whose blanks are U+2581 already.
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


def _explained(message: str, vocab_size: int) -> DataError:
    too_large = re.search(r"Please set it to a value <= (\d+)", message)
    if too_large:
        return DataError(
            f"vocab_size={vocab_size} is larger than this text allows: at most {too_large[1]};"
            " lower it or give more text"
        )
    too_small = re.search(r"(\d+) vs (\d+)", message)
    if too_small:
        return DataError(
            f"vocab_size={vocab_size} is too small: the bytes, special tokens, symbols and"
            f" characters of this text need {too_small[2]}; raise it or lower character_coverage"
        )
    return DataError(f"SentencePiece could not train on this text: {message}")
