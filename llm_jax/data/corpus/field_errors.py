"""The part that errors about fields of .jsonl and about columns of .parquet share."""

from __future__ import annotations

from collections.abc import Iterable

# In the order in which readers are given the names.
_OPTIONS = ("text_field (--text-field)", "encoder_field (--encoder-field)")
_MOST_SHOWN = 20


def pass_another(what: str, names: Iterable[str], index: int) -> str:
    """The end of an error: the names that exist, and the option that takes one of them.

    Args:
        what: ``"fields"`` or ``"columns"``.
        names: the names that exist; at most twenty are shown.
        index: 0 for the text, 1 for the text that an encoder reads.
    """
    known = list(dict.fromkeys(names))
    more = f" and {len(known) - _MOST_SHOWN} more" if len(known) > _MOST_SHOWN else ""
    shown = f"{known[:_MOST_SHOWN]}{more}"
    return f"the {what} there are {shown}: pass one of them as {_OPTIONS[index]}"
