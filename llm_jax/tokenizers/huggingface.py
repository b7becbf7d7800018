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
# Pre-tokenizers that only say where a text is cut.
_CUTS = {"ByteLevel", "Split", "Digits"}


class HuggingFaceTokenizer(ImportedTokenizer):
    """A ``tokenizer.json`` as a ``Tokenizer``. The ids are those of ``tokenizers`` (and of
    transformers' fast tokenizers).

    A special token's text, such as ``<|im_end|>``, becomes that token wherever it stands, as it
    does there. ``lossless`` says whether ``decode(encode(x)) == x`` for every text without the text
    of a special token in it: so it is for byte-level vocabularies without normalisation. Truncation
    and padding that the file asks for are left out.

    Args:
        data: bytes of the tokenizer.json.
        record: what imported.json says beyond it.
        path: the folder, for messages and for copying.

    Raises:
        DataError: no ``tokenizers`` library, a file that it cannot read, a decoder unknown here, or
            added tokens whose ids do not fit.
    """

    def __init__(self, data: bytes, record: Imported, path: Path):
        super().__init__(record, path)
        self._where = str(path / record.model)
        self._tokenizer = tok = load_tokenizer_json(data, self._where)
        self._json = json.loads(data)
        _add_tokens(tok, self._json.get("added_tokens") or [], record, self._where)
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
            # Of an added token that is normalised, this is the normalised text, which decoders are
            # given.
            token = self._tokenizer.id_to_token(id)
            later[id] = decoder.later_bytes(token)
            first[id] = decoder.first_bytes(token)
        return pieces, TokenTable(later, first, control)

    def _is_lossless(self) -> bool:
        pre = self._json.get("pre_tokenizer") or {"type": ""}
        cuts = pre["pretokenizers"] if pre["type"] == "Sequence" else [pre]
        only_cut = all(
            p["type"] in _CUTS and not p.get("add_prefix_space") and p.get("behavior") != "Removed"
            for p in cuts
        )
        model, added = self._json["model"], self._tokenizer.get_added_tokens_decoder().items()
        kept = all(
            t.special or not (t.lstrip or t.rstrip or self._table.later[i] != t.content.encode())
            for i, t in added
        )
        return (
            only_cut
            and kept
            and self._json.get("normalizer") is None
            and model.get("type") == "BPE"
            and not self.adds_prefix
            and not model.get("continuing_subword_prefix")
            and not model.get("end_of_word_suffix")
            and all(c in model["vocab"] for c in byte_characters())
            and self.decode(self.encode(_PROBE)) == _PROBE
        )

    def piece(self, id: int) -> str:
        """The token as the vocabulary writes it."""
        return self._pieces.get(int(id), f"<unused {id}>")

    def encode(self, text: str) -> list[int]:
        """Ids of the text, without ``<s>`` or ``</s>``."""
        return self.encode_batch([text])[0]

    def encode_with_control(self, text: str) -> list[int]:
        """``encode``, which knows the text of control tokens anyway."""
        return self.encode(text)

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """``encode`` of each text. Raises DataError for a text with unpaired surrogates, which has
        no UTF-8 form.
        """
        try:
            return [
                encoding.ids
                for encoding in self._tokenizer.encode_batch_fast(
                    list(texts), add_special_tokens=False
                )
            ]
        except (TypeError, UnicodeEncodeError):
            for text in texts:
                check_utf8(text)
            raise

    def encode_bytes(self, texts: Sequence[str]) -> list[bytes]:
        """``encode`` of each text, as the bytes of int32 ids."""
        return [np.array(ids, np.int32).tobytes() for ids in self.encode_batch(texts)]


def load_tokenizer_json(data: bytes, where: str) -> Any:
    """The ``tokenizers.Tokenizer`` of a tokenizer.json, without truncation and padding. Raises
    DataError; ``where`` names the file.
    """
    try:
        import tokenizers
    except ImportError as error:
        raise DataError(
            f"{where} is read through the tokenizers library, which is missing; pip install -e"
            " '.[hf]'"
        ) from error
    try:
        tok = tokenizers.Tokenizer.from_str(data.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise DataError(f"{where}: not UTF-8 ({error}); get the file again") from error
    except BaseException as error:
        # A panic of the library is no Exception; anything else of that kind is not about the file.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise DataError(
            f"{where}: tokenizers cannot read it ({error}); get the file again, or one that a newer"
            " version wrote"
        ) from error
    tok.no_truncation()
    tok.no_padding()
    return tok


def _add_tokens(tok: Any, own: list[dict[str, Any]], record: Imported, where: str) -> None:
    """Checks the file's ``own`` added tokens, and adds those that the source declares outside of
    it, at the ids that it gives them.
    """
    from tokenizers import AddedToken

    for token in own:
        if (got := tok.token_to_id(token["content"])) != token["id"]:
            raise DataError(
                f"{where}: added token {token['content']!r} has id {token['id']}, and tokenizers"
                f" gives it {got}; mend the file"
            )
    for token in record.added_tokens:
        flags = {
            name: token[name]
            for name in ("single_word", "lstrip", "rstrip", "normalized", "special")
        }
        tok.add_tokens([AddedToken(token["content"], **flags)])
        if (got := tok.token_to_id(token["content"])) != token["id"]:
            raise DataError(
                f"{where}: added token {token['content']!r} is declared as id {token['id']} and"
                f" gets {got}; mend that"
            )
