"""The rules of a SentencePiece model for blanks and bytes, read from its file.

They are not found out by encoding an example text: a vocabulary of Russian or Chinese may have no
"a" and no blank, so that no example shows the rules.

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

    Attributes:
        adds_prefix: Encoding puts a blank before a text.
        strips: Decoding drops the blank at the start of a text.
        drops_all: Decoding drops every piece that is a blank at the start of a text, and not just
            one blank.
        merges: Pieces come from merging pairs (bpe).
        keeps_text: No rule changes a text: nothing is replaced, added or removed, and a blank is a
            piece of its own.
        symbols: User-defined pieces as written in the file. They are found in text before anything
            else.
    """

    adds_prefix: bool
    strips: bool
    drops_all: bool
    merges: bool
    keeps_text: bool
    symbols: tuple[str, ...]


def load_model(data: bytes, where: str) -> Any:
    """The ``SentencePieceProcessor`` of a model file.

    Args:
        data: Bytes of the file.
        where: Name of the file, for messages.

    Raises:
        DataError: The file is not a SentencePiece model.
    """
    import sentencepiece

    model = sentencepiece.SentencePieceProcessor()
    try:
        model.LoadFromSerializedProto(data)
    except (RuntimeError, ValueError) as error:
        raise DataError(
            f"{where}: not a SentencePiece model ({error}); download the file again"
        ) from error
    return model


def model_rules(data: bytes, where: str) -> ModelRules:
    """The rules of a model file that ``load_model`` has read.

    Raises:
        DataError: the file replaces characters on decoding, which is not supported.
    """
    from sentencepiece import sentencepiece_model_pb2

    # Its classes are made at run time, so that type checkers do not see them.
    proto = sentencepiece_model_pb2.ModelProto.FromString(data)  # type: ignore[attr-defined]
    normalizer = proto.normalizer_spec
    trainer = proto.trainer_spec
    if proto.denormalizer_spec.precompiled_charsmap:
        raise DataError(
            f"{where}: the model has a denormalizer, rules for decoding, which are not supported;"
            " use a model without one"
        )
    text_pieces = {proto.SentencePiece.NORMAL, proto.SentencePiece.USER_DEFINED}
    has_blank = any(piece.piece == BLANK and piece.type in text_pieces for piece in proto.pieces)
    rewrites = (
        bool(normalizer.precompiled_charsmap)
        or normalizer.add_dummy_prefix
        or normalizer.remove_extra_whitespaces
    )
    # A model of whole words writes an unknown word as bytes, with those of its U+2581.
    by_parts = trainer.model_type != trainer.WORD
    return ModelRules(
        adds_prefix=normalizer.add_dummy_prefix and not trainer.treat_whitespace_as_suffix,
        strips=normalizer.add_dummy_prefix or normalizer.remove_extra_whitespaces,
        drops_all=normalizer.remove_extra_whitespaces,
        merges=trainer.model_type == trainer.BPE,
        keeps_text=not rewrites and by_parts and (has_blank or not normalizer.escape_whitespaces),
        symbols=tuple(
            piece.piece for piece in proto.pieces if piece.type == proto.SentencePiece.USER_DEFINED
        ),
    )


def token_table(model: Any, rules: ModelRules, where: str) -> TokenTable:
    """The bytes of every id of a model.

    Raises:
        DataError: A piece is not valid text.
    """
    size = model.GetPieceSize()
    later = []
    first = []
    control = np.zeros(size, bool)
    for id in range(size):
        try:
            control[id] = model.IsControl(id)
            data = _piece_bytes(model, id)
        except ValueError as error:
            raise DataError(
                f"{where}: piece {id} is not valid ({error}); download the file again"
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
