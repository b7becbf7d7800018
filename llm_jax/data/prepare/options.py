"""The options of ``prepare`` that its output is a function of, checked against each other."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from llm_jax.data.corpus.clean import CleanOptions, Normalization
from llm_jax.data.corpus.utf8 import InvalidUtf8
from llm_jax.tokenizers.tokenizer import Tokenizer
from llm_jax.types import DataError

DEFAULT_VALIDATION_FRACTION = 0.05
# Options of later versions are recorded only where they are used, so that a folder of an earlier
# version still compares equal.
_RECORDED_IF_SET = ("encoder_field", "validation", "encoder_block_size")


@dataclass(frozen=True)
class PrepareOptions:
    """Options in the order in which the manifest records them; ``prepare`` describes each.

    Attributes:
        encoder_block_size: 0 where documents are single texts; never 0 for pairs.
    """

    text_field: str
    encoder_field: str
    validation_fraction: float
    validation: tuple[str, ...]
    block_size: int
    encoder_block_size: int
    normalization: Normalization
    strip_control: bool
    whitespace: bool
    lower_case: bool
    remove_punctuation: bool
    invalid_utf8: InvalidUtf8
    min_characters: int
    deduplicate: bool
    document_bytes: int
    add_bos: bool
    add_eos: bool
    shard_bytes: int

    @property
    def cleaning(self) -> CleanOptions:
        """The options of ``clean``."""
        return CleanOptions(
            self.normalization,
            self.strip_control,
            self.whitespace,
            self.lower_case,
            self.remove_punctuation,
        )

    def recorded(self) -> dict[str, Any]:
        """The options as the manifest records them."""
        options = {**asdict(self), "validation": list(self.validation)}
        return {
            name: value for name, value in options.items() if value or name not in _RECORDED_IF_SET
        }


def resolve_validation_fraction(fraction: float | None, validation: tuple[str, ...]) -> float:
    """The share of documents that is held out by hash.

    Raises:
        DataError: both a share and files to hold out are given.
    """
    if validation and fraction is not None:
        raise DataError(
            f"validation_fraction={fraction} and validation={list(validation)}; give one of "
            "validation_fraction (--validation-fraction) and validation (--validation)"
        )
    if fraction is not None:
        return float(fraction)
    return 0.0 if validation else DEFAULT_VALIDATION_FRACTION


def resolve_encoder_block_size(encoder_field: str, block_size: int, encoder_block_size: int) -> int:
    """Tokens that an encoder reads in a row; 0 where documents are single texts.

    Raises:
        DataError: ``encoder_block_size`` is given for single texts.
    """
    if encoder_field:
        return encoder_block_size or block_size
    if encoder_block_size:
        raise DataError(
            f"encoder_block_size={encoder_block_size} without encoder_field; it is for pairs, so"
            " name the field that an encoder reads as encoder_field (--encoder-field)"
        )
    return 0


def check_sources(paths: list[Path], held_out: list[Path]) -> None:
    """Check that no file is both input and held out.

    Raises:
        DataError: a file is both.
    """
    known = {path.resolve() for path in paths}
    both = [path for path in held_out if path.resolve() in known]
    if both:
        raise DataError(f"validation has {str(both[0])!r}, which input has too; give it once")


def check_tokenizer_options(options: PrepareOptions, tokenizer: Tokenizer) -> None:
    """Check that the tokenizer has the special tokens that the options ask for.

    Raises:
        DataError: it lacks one, or ``add_bos`` or ``add_eos`` is turned off for pairs.
    """
    if options.encoder_field:
        _check_pairs(options, tokenizer)
        return
    wanted = (
        ("add_bos", "--no-add-bos", "<s>", tokenizer.bos_id),
        ("add_eos", "--no-add-eos", "</s>", tokenizer.eos_id),
    )
    for name, flag, token, token_id in wanted:
        if getattr(options, name) and token_id < 0:
            raise DataError(
                f"{name}=True, but tokenizer {str(tokenizer.path)!r} has no {token}; "
                f"pass {name}=False ({flag})"
            )


def _check_pairs(options: PrepareOptions, tokenizer: Tokenizer) -> None:
    if not (options.add_bos and options.add_eos):
        raise DataError(
            f"add_bos={options.add_bos} and add_eos={options.add_eos} with"
            f" encoder_field={options.encoder_field!r}; they are for single texts, and pairs"
            " always have what the tokenizer adds: leave them out (--no-add-bos, --no-add-eos)"
        )
    if tokenizer.eos_id < 0:
        raise DataError(
            f"tokenizer {str(tokenizer.path)!r} has no </s> to end what a decoder writes; use "
            "another tokenizer (--tokenizer), or leave out encoder_field (--encoder-field)"
        )
