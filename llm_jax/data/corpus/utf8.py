"""Bytes to text: invalid UTF-8 is repaired and counted, or refused with its position."""

from __future__ import annotations

import re
from typing import Literal

from llm_jax.data.corpus.counts import ReadCounts
from llm_jax.types import DataError

InvalidUtf8 = Literal["repair", "refuse"]

HEAD = 64 << 10
_SURROGATE = re.compile("[\ud800-\udfff]")
# Bytes that occur in no UTF-8 text; UTF-16 and UTF-32 files begin with them.
_OTHER_ENCODINGS = (b"\xff\xfe", b"\xfe\xff", b"\0\0\xfe\xff")


class Utf8Decoder:
    """Decodes UTF-8. Repairs are counted in ``counts.invalid_utf8``."""

    def __init__(self, invalid_utf8: InvalidUtf8, counts: ReadCounts):
        self._refuse = invalid_utf8 == "refuse"
        self._counts = counts

    def __call__(self, data: bytes, where: str, offset: int = 0) -> str:
        """The text of ``data``.

        Args:
            data: UTF-8.
            where: file, and line or row, for the error.
            offset: position of ``data`` in the file, for the error.

        Raises:
            DataError: ``data`` is not valid and ``invalid_utf8`` is ``"refuse"``.
        """
        try:
            return data.decode("utf-8")
        except UnicodeDecodeError as error:
            if self._refuse:
                raise DataError(
                    f"{where}: invalid UTF-8 at byte {offset + error.start}; convert it to UTF-8 "
                    "or pass invalid_utf8='repair' (--invalid-utf8 repair)"
                ) from None
        self._counts.invalid_utf8 += undecodable(data)
        return data.decode("utf-8", errors="replace")

    def without_surrogates(self, text: str, where: str) -> str:
        """``text`` without unpaired surrogates, which JSON escapes can write and UTF-8 cannot.

        They are treated like invalid UTF-8.

        Raises:
            DataError: there is one and ``invalid_utf8`` is ``"refuse"``.
        """
        found = _SURROGATE.search(text)
        if found is None:
            return text
        if self._refuse:
            raise DataError(
                f"{where}: unpaired surrogate at character {found.start()} of the text; "
                "fix the line or pass invalid_utf8='repair' (--invalid-utf8 repair)"
            )
        repaired, number = _SURROGATE.subn("\ufffd", text)
        self._counts.invalid_utf8 += number
        return repaired


def undecodable(data: bytes) -> int:
    """Number of invalid UTF-8 sequences in ``data``."""
    return data.decode("utf-8", errors="replace").count("\ufffd") - data.count(b"\xef\xbf\xbd")


def check_head(head: bytes, where: str) -> None:
    """Check that the first bytes of a file are text in UTF-8.

    Raises:
        DataError: they begin like UTF-16, hold a NUL byte, or are mostly undecodable.
    """
    if head.startswith(_OTHER_ENCODINGS):
        raise DataError(f"{where}: text in UTF-16 or UTF-32; convert it to UTF-8 (iconv -t UTF-8)")
    nul = head.find(b"\0")
    if nul >= 0:
        raise DataError(
            f"{where}: binary file (NUL byte at {nul}); text must be UTF-8, "
            "so convert it or leave it out"
        )
    bad = undecodable(head)
    if bad > 1 and bad > 0.3 * len(head):
        raise DataError(
            f"{where}: binary file or another encoding "
            f"({bad} undecodable of the first {len(head)} bytes); convert it to UTF-8"
        )
