"""The records of imported tokenizers (``imported.json``), made from a model file and what its
folder declares.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from llm_jax.tokenizers.ends import all_ends
from llm_jax.tokenizers.hf_config import CONFIG, Declared
from llm_jax.tokenizers.huggingface import load_tokenizer_json
from llm_jax.tokenizers.imported_sentencepiece import Family, family_of, moved_ids
from llm_jax.tokenizers.manifest import Imported, sha256_of
from llm_jax.tokenizers.tokenizer import SentencePieceTokenizer
from llm_jax.types import DataError

JSON_FILE = "tokenizer.json"
_SPECIAL = {
    "single_word": False,
    "lstrip": False,
    "rstrip": False,
    "normalized": False,
    "special": True,
}
IdOf = Callable[[str], int | None]
# Ids that may be none or, of tokens that end a text, several.
Ids = tuple[int, ...]


def hugging_face_record(files: dict[str, bytes], declared: Declared, source: str) -> Imported:
    """The record of a tokenizer.json with what its folder declares. Raises DataError."""
    where = f"{source}/{JSON_FILE}"
    tok = load_tokenizer_json(files[JSON_FILE], where)
    if getattr(tok.model, "dropout", None):
        raise DataError(
            f"{where}: dropout {tok.model.dropout} makes the ids random; set it to null"
        )
    added = _add_missing(tok, declared, where)
    bos, eos = (
        special_ids("bos", declared, tok.token_to_id),
        special_ids("eos", declared, tok.token_to_id),
    )
    before, after = around(tok, where)
    special = {
        token.content: id for id, token in tok.get_added_tokens_decoder().items() if token.special
    }
    top = max(tok.get_vocab(with_added_tokens=True).values(), default=-1) + 1
    return Imported(
        kind="hugging-face",
        model=JSON_FILE,
        files=sha256_of(files),
        special=_first(
            bos=bos,
            **{name: special_ids(name, declared, tok.token_to_id) for name in ("pad", "unk")},
        ),
        eos_ids=all_ends(eos, declared, special),
        # Some files leave it to the class, which reads the flag.
        add_bos=_adds("before", "bos", bos, before, tok, where) or bool(declared.add_bos and bos),
        add_eos=_adds("after", "eos", eos, after, tok, where) or bool(declared.add_eos and eos),
        vocab_size=max(top, declared.vocab_size),
        added_tokens=added,
        piece_ids={},
        tokens=_texts(declared),
        chat_templates=declared.chat_templates,
        source=source,
    )


def sentencepiece_record(
    model: Path, files: dict[str, bytes], declared: Declared, source: str
) -> Imported:
    """The record of a SentencePiece model, one of ``files``, with what its folder declares. Raises
    DataError.
    """
    family = family_of(declared.config.get("tokenizer_class"), source)
    if family.sentinels and (number := declared.config.get("extra_ids")) is not None:
        if type(number) is not int or not 0 <= number <= 10_000:
            raise DataError(
                f"{source}/{CONFIG}: extra_ids is {str(number)[:80]!r}, expected a number from 0 to"
                " 10,000; mend the file"
            )
        family = family._replace(sentinels=number)
    sp = SentencePieceTokenizer(model)
    moved = (
        {"offset": family.offset, "moved": [list(pair) for pair in family.moved]}
        if family.offset or family.moved
        else {}
    )
    ids = moved_ids(sp.vocab_size, moved)
    pieces = {sp.piece(n): int(ids[n]) for n in range(sp.vocab_size)}
    added = _added_pieces(pieces, ids, family, declared, source)
    all_ids = pieces | {token["content"]: token["id"] for token in added}
    control = {sp.piece(n): int(ids[n]) for n in range(sp.vocab_size) if sp.is_control(n)}
    named_special = control | {token["content"]: token["id"] for token in added if token["special"]}
    own = {
        name: (int(ids[id]),) if id >= 0 else ()
        for name, id in (("bos", sp.bos_id), ("eos", sp.eos_id), ("unk", sp.unk_id))
    }
    own["pad"] = (all_ids["<pad>"],) if "<pad>" in all_ids else ()
    silent = {name: own[name] if f"{name}_token" not in declared.named else () for name in own}
    found = {name: special_ids(name, declared, all_ids.get) or silent[name] for name in own}
    texts = {
        f"{name}_token": text for text, id in all_ids.items() for name in found if id in found[name]
    }
    return Imported(
        kind="sentencepiece",
        model=model.name,
        files=sha256_of(files),
        special=_first(**{name: found[name] for name in ("bos", "pad", "unk")}),
        eos_ids=all_ends(found["eos"], declared, named_special),
        add_bos=bool(found["bos"])
        and (family.add_bos if declared.add_bos is None else declared.add_bos),
        add_eos=bool(found["eos"])
        and (family.add_eos if declared.add_eos is None else declared.add_eos),
        vocab_size=max(
            declared.vocab_size, int(ids.max()) + 1, *(token["id"] + 1 for token in added)
        ),
        added_tokens=tuple(added),
        piece_ids=moved,
        tokens=texts | _texts(declared),
        chat_templates=declared.chat_templates,
        source=source,
    )


def special_ids(name: str, declared: Declared, id_of: IdOf) -> Ids:
    """Id of the token declared as bos, eos, pad or unk; else of what encoders have in its place;
    else what is declared by id.
    """
    for key in (f"{name}_token", {"bos": "cls_token", "eos": "sep_token"}.get(name, "")):
        if (text := declared.named.get(key)) is not None:
            return () if (id := id_of(text)) is None else (id,)
    # A name given as null says that there is none.
    return () if f"{name}_token" in declared.named else declared.ids.get(name, ())[:1]


def _first(**ids: Ids) -> dict[str, int]:
    return {name: (*found, -1)[0] for name, found in ids.items()}


def _texts(declared: Declared) -> dict[str, Any]:
    return {name: text for name, text in declared.named.items() if text is not None}


def _add_missing(tok: Any, declared: Declared, where: str) -> tuple[dict[str, Any], ...]:
    """Adds to ``tok`` what transformers adds: declared tokens, and special ones that the file does
    not mark as such.
    """
    from tokenizers import AddedToken

    present = {token.content for token in tok.get_added_tokens_decoder().values()}
    special = [text for text in (*declared.named.values(), *declared.extra) if text is not None]
    added = []
    for token in [declared.added[id] for id in sorted(declared.added)] + [
        {"content": text, **_SPECIAL} for text in special
    ]:
        if token["content"] in present:
            continue
        flags = {name: token[name] for name in _SPECIAL} | {
            "special": token["special"] or token["content"] in special
        }
        tok.add_tokens([AddedToken(token["content"], **flags)])
        present.add(token["content"])
        id = tok.token_to_id(token["content"])
        if token.get("id", id) != id:
            raise DataError(
                f"{where}: added token {token['content']!r} is declared as id {token['id']} and"
                f" gets {id}; mend {CONFIG}"
            )
        added.append({"id": id, "content": token["content"], **flags})
    return tuple(added)


def around(tok: Any, where: str) -> tuple[Ids, Ids]:
    """The ids that the post-processor of a ``tokenizers.Tokenizer`` puts before and after a text,
    read from its description.
    """
    before: Ids = ()
    after: Ids = ()
    described = (
        json.loads(tok.post_processor.__getstate__())
        if tok.post_processor
        else {"type": "ByteLevel"}
    )
    for processor in _processors(described):
        outer = _added_by(processor)
        if outer is None:
            raise DataError(
                f"{where}: post_processor {processor['type']!r} does more than to put tokens before"
                " and after a text, and only that is supported; change post_processor"
            )
        before = (*outer[0], *before)
        after = (*after, *outer[1])
    return before, after


def _processors(processor: dict[str, Any]) -> list[dict[str, Any]]:
    if processor["type"] != "Sequence":
        return [processor]
    return [inner for part in processor["processors"] for inner in _processors(part)]


def _added_by(processor: dict[str, Any]) -> tuple[Ids, Ids] | None:
    """The ids before and after a text; None where the processor does anything else."""
    if processor["type"] == "ByteLevel":
        return (), ()
    if processor["type"] in ("BertProcessing", "RobertaProcessing"):
        return (processor["cls"][1],), (processor["sep"][1],)
    if processor["type"] != "TemplateProcessing":
        return None
    parts = processor["single"]
    texts = [n for n, part in enumerate(parts) if "Sequence" in part]
    if len(texts) != 1 or parts[texts[0]]["Sequence"]["id"] != "A":
        return None
    ids = [
        processor["special_tokens"][p["SpecialToken"]["id"]]["ids"] if "SpecialToken" in p else []
        for p in parts
    ]
    before = tuple(id for part in ids[: texts[0]] for id in part)
    after = tuple(id for part in ids[texts[0] :] for id in part)
    return before, after


def _adds(place: str, name: str, special: Ids, found: Ids, tok: Any, where: str) -> bool:
    """Whether the post-processor puts the special token there. Raises DataError if it puts anything
    else there.
    """
    if found not in ((), special):
        raise DataError(
            f"{where}: puts {[tok.id_to_token(id) for id in found]} {place} a text, and its"
            f" {name}_token is {[tok.id_to_token(id) for id in special]}; only that one token is"
            " supported there: change post_processor"
        )
    return bool(found)


def _added_pieces(
    pieces: dict[str, int], ids: np.ndarray, family: Family, declared: Declared, source: str
) -> list[dict[str, Any]]:
    """The tokens that the family and the folder add to the model's pieces, by id."""
    top, used = int(ids.max()) + 1, set(ids.tolist())
    last = [*family.last, *(f"<extra_id_{n}>" for n in reversed(range(family.sentinels)))]
    placed = (*family.before, *((text, top + n) for n, text in enumerate(last)))
    added = {text: {"id": id, "content": text, **_SPECIAL} for text, id in placed}
    for id, token in sorted(declared.added.items()):
        text = token["content"]
        known = added[text]["id"] if text in added else pieces.get(text)
        if known is None and id not in used:
            added[text] = token
        elif known != id:
            what = "which is another piece of the model" if known is None else f"and has id {known}"
            raise DataError(
                f"{source}: added token {text!r} is declared as id {id}, {what}; mend {CONFIG}"
            )
    for text in (*declared.named.values(), *declared.extra):
        if text is not None and text not in pieces and text not in added:
            added[text] = {
                "id": max([top - 1, *(token["id"] for token in added.values())]) + 1,
                "content": text,
                **_SPECIAL,
            }
    return sorted(added.values(), key=lambda token: token["id"])
