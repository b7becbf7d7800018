"""English → Brazilian Portuguese pairs out of LibreOffice's help, as .jsonl files for
configs/translate_tiny.py.

    apt-get download libreoffice-help-en-us libreoffice-help-pt-br && for f in
    libreoffice-help-*.deb; do dpkg -x "$f" help; done python examples/libreoffice_pairs.py
    help/usr/share/libreoffice/help pairs

Paragraphs and headings of the same file and the same id are a pair; what is hidden inside them is
no text. Left out: pairs of the same text, which nobody translated, and of more than 50 words on a
side. Files, not pairs, are held out, since sentences repeat within a file: by the hash of their
path 5 % are test.jsonl and 3 % validation.jsonl; pairs whose English stands in one of these are
left out of train.jsonl. Licence of the text: MPL-2.0.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

MOST_WORDS = 50
SHARES = {"test": 0.05, "validation": 0.03}
_BLOCKS = ("p", "h1", "h2", "h3", "h4", "h5", "h6")
_EMPTY = (
    "br",
    "img",
    "input",
    "meta",
    "link",
    "hr",
    "source",
    "wbr",
    "col",
    "area",
    "base",
    "embed",
    "param",
    "track",
)


class Paragraphs(HTMLParser):
    """Text of each ``<p>`` and ``<h*>`` with an id."""

    def __init__(self) -> None:
        super().__init__()
        self.texts: dict[str, str] = {}
        self._id, self._open, self._hidden = "", [], 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag in _BLOCKS:
            # A paragraph ends where the next begins, whether it was closed or not.
            self._id, self._open, self._hidden = given.get("id") or "", [], 0
        elif tag == "br":
            self.handle_data(" ")
        elif tag not in _EMPTY:
            self._open.append("hidden" in given)
            self._hidden += "hidden" in given

    def handle_endtag(self, tag: str) -> None:
        if tag in _BLOCKS:
            self._id = ""
        elif tag not in _EMPTY and self._open:
            self._hidden -= self._open.pop()

    def handle_data(self, data: str) -> None:
        if self._id and not self._hidden:
            self.texts[self._id] = self.texts.get(self._id, "") + data


def paragraphs(file: Path) -> dict[str, str]:
    parser = Paragraphs()
    parser.feed(file.read_text(encoding="utf-8"))
    return {id: " ".join(text.split()) for id, text in parser.texts.items()}


def pairs(help: Path) -> Iterator[tuple[str, str, str]]:
    """(relative path, English, Portuguese), in the order of paths and of paragraphs."""
    english = help / "en-US" / "text"
    if not english.is_dir():
        raise SystemExit(
            f"{english} is not there; name the folder help/ in which en-US and pt-BR are"
        )
    for file in sorted(english.rglob("*.html")):
        name = file.relative_to(english).as_posix()
        other = help / "pt-BR" / "text" / name
        if other.is_file():
            translated = paragraphs(other)
            for id, en in paragraphs(file).items():
                pt = translated.get(id, "")
                if en and pt and en != pt and max(len(en.split()), len(pt.split())) <= MOST_WORDS:
                    yield name, en, pt


def split_of(name: str) -> str:
    place = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "big") / 2**64
    for split, share in SHARES.items():
        if place < share:
            return split
        place -= share
    return "train"


def main() -> None:
    if len(sys.argv) != 3:
        raise SystemExit(__doc__)
    found: dict[str, dict[tuple[str, str], None]] = {split: {} for split in ("train", *SHARES)}
    for name, en, pt in pairs(Path(sys.argv[1])):
        found[split_of(name)][en, pt] = None
    held_out = {en for split in SHARES for en, _ in found[split]}
    train = [pair for pair in found["train"] if pair[0] not in held_out]
    out = Path(sys.argv[2])
    out.mkdir(parents=True, exist_ok=True)
    for split, kept in {**found, "train": train}.items():
        lines = (json.dumps({"en": en, "pt": pt}, ensure_ascii=False) for en, pt in kept)
        (out / f"{split}.jsonl").write_text(
            "".join(f"{line}\n" for line in lines), encoding="utf-8"
        )
        print(f"{split}: {len(kept):,} pairs")
    print(f"left out of train, since the English is held out: {len(found['train']) - len(train):,}")


if __name__ == "__main__":
    main()
