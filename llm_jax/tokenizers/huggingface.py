"""Hugging Face's ``tokenizer.json`` as a ``Tokenizer``, through the ``tokenizers`` library (extra
``[hf]``).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from llm_jax.tokenizers.manifest import Imported, ImportedTokenizer
from llm_jax.tokenizers.token_bytes import TokenDecoder, byte_characters, token_decoder
from llm_jax.tokenizers.token_table import TokenTable
from llm_jax.tokenizers.tokenizer import check_utf8
from llm_jax.types import DataError

_PROBE = " a  b\n\n\tc \u2581 \ufb01 e\u0301 \r\n\x00\u00e9 "
# Pre-tokenizers that split a text and do not change it.
_CUTS = {"ByteLevel", "Split", "Digits"}
_TOKEN_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")


class HuggingFaceTokenizer(ImportedTokenizer):
    """A ``tokenizer.json`` as a ``Tokenizer``. The ids are those of ``tokenizers`` (and of
    transformers' fast tokenizers).

    As in these libraries, the text of a special token, such as ``<|im_end|>``, becomes that token
    anywhere in a text. ``lossless`` says whether ``decode(encode(x)) == x`` for every text without
    such a text in it, which holds for byte-level vocabularies without normalization. Truncation
    and padding in the file are ignored.

    Args:
        data: Bytes of the tokenizer.json.
        record: The tokenizer's imported.json.
        path: The folder, for messages and for copying.

    Raises:
        DataError: The ``tokenizers`` library is not installed or cannot read the file, the decoder
            is not supported, or ids of added tokens do not fit.
    """

    def __init__(self, data: bytes, record: Imported, path: Path):
        super().__init__(record, path)
        self._where = str(path / record.model)
        self._tokenizer = load_tokenizer_json(data, self._where)
        self._json = json.loads(data)
        own = self._json.get("added_tokens") or []
        _check_own_tokens(self._tokenizer, own, self._where)
        _add_tokens(self._tokenizer, record, self._where)
        decoder = token_decoder(self._json.get("decoder"), self._where)
        self.adds_prefix = decoder.adds_prefix
        self._pieces, self._table = self._tables(decoder)
        self.lossless = self._is_lossless()

    def _tables(self, decoder: TokenDecoder) -> tuple[dict[int, str], TokenTable]:
        """Text of each token, and the bytes of each id."""
        pieces = {
            id: token for token, id in self._tokenizer.get_vocab(with_added_tokens=True).items()
        }
        if pieces and max(pieces) >= self.vocab_size:
            raise DataError(
                f"{self._where}: token {pieces[max(pieces)]!r} has id {max(pieces)}, and vocab_size"
                f" is {self.vocab_size}; import it again"
            )
        special = {
            id for id, token in self._tokenizer.get_added_tokens_decoder().items() if token.special
        }
        control = np.array(
            [id in special or id not in pieces for id in range(self.vocab_size)], bool
        )
        later = [b""] * self.vocab_size
        first = list(later)
        for id in np.flatnonzero(~control).tolist():
            # For an added token that is normalized, this is the normalized text, which is what
            # decoders get.
            token = self._tokenizer.id_to_token(id)
            later[id] = decoder.later_bytes(token)
            first[id] = decoder.first_bytes(token)
        return pieces, TokenTable(later, first, control)

    def _is_lossless(self) -> bool:
        model = self._json["model"]
        return (
            self._only_splits()
            and self._keeps_added_tokens()
            and self._json.get("normalizer") is None
            and model.get("type") == "BPE"
            and not self.adds_prefix
            and not model.get("continuing_subword_prefix")
            and not model.get("end_of_word_suffix")
            and all(character in model["vocab"] for character in byte_characters())
            and self.decode(self.encode(_PROBE)) == _PROBE
        )

    def _only_splits(self) -> bool:
        """Whether the pre-tokenizer keeps every character."""
        pre_tokenizer = self._json.get("pre_tokenizer") or {"type": ""}
        steps = [pre_tokenizer]
        if pre_tokenizer["type"] == "Sequence":
            steps = pre_tokenizer["pretokenizers"]
        return all(
            step["type"] in _CUTS
            and not step.get("add_prefix_space")
            and step.get("behavior") != "Removed"
            for step in steps
        )

    def _keeps_added_tokens(self) -> bool:
        """Whether every added token that is not special decodes to its own text."""
        for id, token in self._tokenizer.get_added_tokens_decoder().items():
            if token.special:
                continue
            takes_blanks = token.lstrip or token.rstrip
            if takes_blanks or self._table.later[id] != token.content.encode():
                return False
        return True

    def piece(self, id: int) -> str:
        """The token as the vocabulary writes it."""
        return self._pieces.get(int(id), f"<unused {id}>")

    def encode(self, text: str) -> list[int]:
        """Ids of the text, without ``<s>`` or ``</s>``."""
        return self.encode_batch([text])[0]

    def encode_with_control(self, text: str) -> list[int]:
        """The same as ``encode``, which always reads the text of a control token as that token."""
        return self.encode(text)

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """``encode`` of each text.

        Raises:
            DataError: A text has unpaired surrogates and so no UTF-8 form.
        """
        try:
            encoded = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        except (TypeError, UnicodeEncodeError):
            for text in texts:
                check_utf8(text)
            raise
        return [encoding.ids for encoding in encoded]

    def encode_bytes(self, texts: Sequence[str]) -> list[bytes]:
        """``encode`` of each text, as the bytes of int32 ids."""
        return [np.array(ids, np.int32).tobytes() for ids in self.encode_batch(texts)]


def load_tokenizer_json(data: bytes, where: str) -> Any:
    """The ``tokenizers.Tokenizer`` of a tokenizer.json, without truncation and padding.

    Args:
        data: Bytes of the file.
        where: Name of the file, for messages.

    Raises:
        DataError: The library is not installed or cannot read the file.
    """
    try:
        import tokenizers
    except ImportError as error:
        raise DataError(
            f"{where} needs the tokenizers library, which is not installed; pip install -e '.[hf]'"
        ) from error
    try:
        tok = tokenizers.Tokenizer.from_str(data.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise DataError(f"{where}: not valid UTF-8 ({error}); download the file again") from error
    except BaseException as error:
        # A panic of the library is a BaseException. Others, such as Ctrl-C, are not about the file.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise DataError(
            f"{where}: tokenizers cannot read it ({error}); download the file again, or use one"
            " that a newer version wrote"
        ) from error
    tok.no_truncation()
    tok.no_padding()
    return tok


def _check_own_tokens(tok: Any, own: list[dict[str, Any]], where: str) -> None:
    """Raises DataError where an added token of the file does not get the id that it has there."""
    for token in own:
        id = tok.token_to_id(token["content"])
        if id != token["id"]:
            raise DataError(
                f"{where}: added token {token['content']!r} has id {token['id']}, and tokenizers"
                f" gives it {id}; fix the file"
            )


def _add_tokens(tok: Any, record: Imported, where: str) -> None:
    """Adds the tokens that the source declares outside of the file, at the declared ids."""
    from tokenizers import AddedToken

    for token in record.added_tokens:
        flags = {name: token[name] for name in _TOKEN_FLAGS}
        tok.add_tokens([AddedToken(token["content"], **flags)])
        id = tok.token_to_id(token["content"])
        if id != token["id"]:
            raise DataError(
                f"{where}: added token {token['content']!r} is declared as id {token['id']} and"
                f" gets {id}; fix the declaration"
            )
