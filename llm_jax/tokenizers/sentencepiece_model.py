"""What a SentencePiece model file says about blanks, bytes and rules, read from the file and never
tried out on a text.

A vocabulary of Russian or Chinese may have no "a" and no blank, so that no example text shows what
the model does with them.

Source: ``sentencepiece_model.proto`` (NormalizerSpec, TrainerSpec) and
``SentencePieceProcessor::Decode`` of SentencePiece 0.2.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from llm_jax.tokenizers.token_table import TokenTable
from llm_jax.types import DataError

BLANK = "\u2581"


class ModelRules(NamedTuple):
    """Rules of a model file.

    adds_prefix: encoding puts a blank before a text.
    strips: decoding leaves out the blank at the start of a text.
    drops_all: decoding leaves out every piece that is a blank at the start of a text, and not just
        one blank.
    merges: pieces come from merging pairs (bpe).
    keeps_text: no rule changes a text: nothing is replaced, added or removed, and a blank is a
        piece of its own.
    symbols: user-defined pieces as the file has them, found in text before anything else.
    """

    adds_prefix: bool
    strips: bool
    drops_all: bool
    merges: bool
    keeps_text: bool
    symbols: tuple[str, ...]


def load_model(data: bytes, where: str) -> Any:
    """The ``SentencePieceProcessor`` of a model file's bytes. Raises DataError; ``where`` names the
    file.
    """
    import sentencepiece

    model = sentencepiece.SentencePieceProcessor()
    try:
        model.LoadFromSerializedProto(data)
    except (RuntimeError, ValueError) as error:
        raise DataError(
            f"{where}: not a SentencePiece model ({error}); get the file again"
        ) from error
    return model


def model_rules(data: bytes, where: str) -> ModelRules:
    """The rules of a model file that ``load_model`` has read.

    Raises:
        DataError: the file replaces characters on decoding, which is not supported.
    """
    from sentencepiece import sentencepiece_model_pb2

    proto = sentencepiece_model_pb2.ModelProto.FromString(data)
    before, after, trainer = proto.normalizer_spec, proto.denormalizer_spec, proto.trainer_spec
    if after.precompiled_charsmap:
        raise DataError(
            f"{where}: the model has a denormalizer, rules for decoding, which are not supported"
        )
    text_pieces = {proto.SentencePiece.NORMAL, proto.SentencePiece.USER_DEFINED}
    has_blank = any(piece.piece == BLANK and piece.type in text_pieces for piece in proto.pieces)
    rewrites = (
        bool(before.precompiled_charsmap)
        or before.add_dummy_prefix
        or before.remove_extra_whitespaces
    )
    # A whole word that is unknown is written as bytes, those of its blank U+2581 too.
    by_parts = trainer.model_type != trainer.WORD
    return ModelRules(
        adds_prefix=before.add_dummy_prefix and not trainer.treat_whitespace_as_suffix,
        strips=before.add_dummy_prefix or before.remove_extra_whitespaces,
        drops_all=before.remove_extra_whitespaces,
        merges=trainer.model_type == trainer.BPE,
        keeps_text=not rewrites and by_parts and (has_blank or not before.escape_whitespaces),
        symbols=tuple(
            piece.piece for piece in proto.pieces if piece.type == proto.SentencePiece.USER_DEFINED
        ),
    )


def token_table(model: Any, rules: ModelRules, where: str) -> TokenTable:
    """The bytes of every id of a model. Raises DataError for a piece that is no text."""
    size = model.GetPieceSize()
    later, first = [], []
    control = np.zeros(size, bool)
    for id in range(size):
        try:
            control[id] = model.IsControl(id)
            data = _piece_bytes(model, id)
        except ValueError as error:
            raise DataError(
                f"{where}: piece {id} is not valid ({error}); get the file again"
            ) from error
        later.append(data)
        strips = rules.strips and not model.IsByte(id) and model.IdToPiece(id).startswith(BLANK)
        first.append(data[1:] if strips and data else data)
    return TokenTable(later, first, control, drops_all=rules.drops_all)


def _piece_bytes(model: Any, id: int) -> bytes:
    piece = model.IdToPiece(id)
    if model.IsControl(id):
        return b""
    if model.IsByte(id):
        return bytes([int(piece[3:5], 16)])
    if model.IsUnknown(id):
        return "\ufffd".encode()
    return piece.replace(BLANK, " ").encode()
