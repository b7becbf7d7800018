"""Makes the record (``imported.json``) of a tokenizer from its model file and what its folder
declares.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from llm_jax.tokenizers.ends import all_ends
from llm_jax.tokenizers.hf_config import CONFIG, Declared
from llm_jax.tokenizers.huggingface import load_tokenizer_json
from llm_jax.tokenizers.imported_sentencepiece import TokenizerClass, moved_ids, tokenizer_class_of
from llm_jax.tokenizers.manifest import Imported, sha256_of
from llm_jax.tokenizers.sentencepiece_tokenizer import SentencePieceTokenizer
from llm_jax.types import DataError

JSON_FILE = "tokenizer.json"
_SPECIAL = {
    "single_word": False,
    "lstrip": False,
    "rstrip": False,
    "normalized": False,
    "special": True,
}
_MAX_SENTINELS = 10_000
# The token that encoders have in place of bos or eos.
_IN_PLACE_OF = {"bos": "cls_token", "eos": "sep_token"}
IdOf = Callable[[str], int | None]
# No id, one id, or, for tokens that end a text, several.
Ids = tuple[int, ...]


def hugging_face_record(files: dict[str, bytes], declared: Declared, source: str) -> Imported:
    """The record of a tokenizer.json.

    Args:
        files: Name -> bytes of the source's files.
        declared: What its folder declares.
        source: Name of the folder.

    Raises:
        DataError: The file is not usable, or contradicts what the folder declares.
    """
    where = f"{source}/{JSON_FILE}"
    tok = load_tokenizer_json(files[JSON_FILE], where)
    dropout = getattr(tok.model, "dropout", None)
    if dropout:
        raise DataError(f"{where}: dropout {dropout} makes the ids random; set it to null")
    added = _add_missing(tok, declared, where)
    ids = {
        name: special_ids(name, declared, tok.token_to_id) for name in ("bos", "eos", "pad", "unk")
    }
    before, after = around(tok, where)
    _check_around(_Side("before", "bos", before, ids["bos"]), tok, where)
    _check_around(_Side("after", "eos", after, ids["eos"]), tok, where)
    special = {
        token.content: id for id, token in tok.get_added_tokens_decoder().items() if token.special
    }
    size = max(tok.get_vocab(with_added_tokens=True).values(), default=-1) + 1
    return Imported(
        kind="hugging-face",
        model=JSON_FILE,
        files=sha256_of(files),
        special=_one_each({name: ids[name] for name in ("bos", "pad", "unk")}),
        eos_ids=all_ends(ids["eos"], declared, special),
        # Some files leave these to the tokenizer's class, which reads the flag.
        add_bos=bool(before) or bool(declared.add_bos and ids["bos"]),
        add_eos=bool(after) or bool(declared.add_eos and ids["eos"]),
        vocab_size=max(size, declared.vocab_size),
        added_tokens=added,
        piece_ids={},
        tokens=_texts(declared),
        chat_templates=declared.chat_templates,
        source=source,
    )


def sentencepiece_record(
    model: Path, files: dict[str, bytes], declared: Declared, source: str
) -> Imported:
    """The record of a SentencePiece model.

    Args:
        model: The model file, one of ``files``.
        files: Name -> bytes of the source's files.
        declared: What its folder declares.
        source: Name of the folder.

    Raises:
        DataError: The tokenizer's class is unknown, or ids contradict each other.
    """
    kind = _tokenizer_class(declared, source)
    sp = SentencePieceTokenizer(model)
    moved: dict[str, Any] = {}
    if kind.offset or kind.moved:
        moved = {"offset": kind.offset, "moved": [list(pair) for pair in kind.moved]}
    ids = moved_ids(sp.vocab_size, moved)
    pieces = {sp.piece(n): int(ids[n]) for n in range(sp.vocab_size)}
    added = _added_pieces(pieces, ids, kind, declared, source)
    all_ids = pieces | {token["content"]: token["id"] for token in added}
    found = _sentencepiece_ids(sp, ids, all_ids, declared)
    special = {sp.piece(n): int(ids[n]) for n in range(sp.vocab_size) if sp.is_control(n)}
    special |= {token["content"]: token["id"] for token in added if token["special"]}
    texts = {
        f"{name}_token": text for text, id in all_ids.items() for name in found if id in found[name]
    }
    add_bos = kind.add_bos if declared.add_bos is None else declared.add_bos
    add_eos = kind.add_eos if declared.add_eos is None else declared.add_eos
    return Imported(
        kind="sentencepiece",
        model=model.name,
        files=sha256_of(files),
        special=_one_each({name: found[name] for name in ("bos", "pad", "unk")}),
        eos_ids=all_ends(found["eos"], declared, special),
        add_bos=add_bos and bool(found["bos"]),
        add_eos=add_eos and bool(found["eos"]),
        vocab_size=max(
            declared.vocab_size, int(ids.max()) + 1, *(token["id"] + 1 for token in added)
        ),
        added_tokens=tuple(added),
        piece_ids=moved,
        tokens=texts | _texts(declared),
        chat_templates=declared.chat_templates,
        source=source,
    )


def _tokenizer_class(declared: Declared, source: str) -> TokenizerClass:
    """The tokenizer's class, with the number of sentinels that the folder declares."""
    kind = tokenizer_class_of(declared.config.get("tokenizer_class"), source)
    number = declared.config.get("extra_ids")
    if not kind.sentinels or number is None:
        return kind
    if type(number) is not int or not 0 <= number <= _MAX_SENTINELS:
        raise DataError(
            f"{source}/{CONFIG}: extra_ids is {str(number)[:80]!r}, expected a number from 0 to"
            f" {_MAX_SENTINELS:,}; fix the file"
        )
    return kind._replace(sentinels=number)


def _sentencepiece_ids(
    sp: SentencePieceTokenizer, ids: np.ndarray, all_ids: Mapping[str, int], declared: Declared
) -> dict[str, Ids]:
    """bos, eos, unk, pad -> the declared id, or the model's own where the folder declares none.

    Args:
        sp: The model.
        ids: [pieces]: the id of each piece.
        all_ids: Text -> id of pieces and added tokens.
        declared: What the folder declares.
    """
    own: dict[str, Ids] = {}
    for name, piece in (("bos", sp.bos_id), ("eos", sp.eos_id), ("unk", sp.unk_id)):
        own[name] = (int(ids[piece]),) if piece >= 0 else ()
    own["pad"] = (all_ids["<pad>"],) if "<pad>" in all_ids else ()
    found = {}
    for name, own_ids in own.items():
        found[name] = special_ids(name, declared, all_ids.get)
        if not found[name] and f"{name}_token" not in declared.named:
            found[name] = own_ids
    return found


def special_ids(name: str, declared: Declared, id_of: IdOf) -> Ids:
    """The id of a special token.

    It is the id of the token declared as such, or else of the token that encoders have in its
    place, or else the declared id.

    Args:
        name: bos, eos, pad or unk.
        declared: What the folder declares.
        id_of: Text -> id, or None.
    """
    for key in (f"{name}_token", _IN_PLACE_OF.get(name, "")):
        text = declared.named.get(key)
        if text is not None:
            id = id_of(text)
            return () if id is None else (id,)
    # A null declares that there is no such token.
    return () if f"{name}_token" in declared.named else declared.ids.get(name, ())[:1]


def _one_each(ids: Mapping[str, Ids]) -> dict[str, int]:
    """The first id of each, or -1."""
    return {name: found[0] if found else -1 for name, found in ids.items()}


def _texts(declared: Declared) -> dict[str, Any]:
    return {name: text for name, text in declared.named.items() if text is not None}


def _special_texts(declared: Declared) -> list[str]:
    return [text for text in (*declared.named.values(), *declared.extra) if text is not None]


def _add_missing(tok: Any, declared: Declared, where: str) -> tuple[dict[str, Any], ...]:
    """Adds to ``tok`` the tokens that transformers adds, and returns them: declared tokens, and
    special tokens that the file does not mark as special.
    """
    from tokenizers import AddedToken

    present = {token.content for token in tok.get_added_tokens_decoder().values()}
    special = _special_texts(declared)
    candidates = [declared.added[id] for id in sorted(declared.added)]
    candidates += [{"content": text, **_SPECIAL} for text in special]
    added = []
    for token in candidates:
        text = token["content"]
        if text in present:
            continue
        flags = {name: token[name] for name in _SPECIAL}
        flags["special"] = token["special"] or text in special
        tok.add_tokens([AddedToken(text, **flags)])
        present.add(text)
        id = tok.token_to_id(text)
        if token.get("id", id) != id:
            raise DataError(
                f"{where}: added token {text!r} is declared as id {token['id']} and gets"
                f" {id}; fix {CONFIG}"
            )
        added.append({"id": id, "content": text, **flags})
    return tuple(added)


def around(tok: Any, where: str) -> tuple[Ids, Ids]:
    """The ids that the post-processor of a ``tokenizers.Tokenizer`` puts before and after a text.

    They are read from the description of the post-processor.

    Raises:
        DataError: The post-processor does anything else.
    """
    before: Ids = ()
    after: Ids = ()
    described = {"type": "ByteLevel"}
    if tok.post_processor:
        described = json.loads(tok.post_processor.__getstate__())
    for processor in _processors(described):
        outer = _added_by(processor)
        if outer is None:
            raise DataError(
                f"{where}: post_processor {processor['type']!r} does more than put tokens before"
                " and after a text, which is not supported; change post_processor"
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
    texts = [index for index, part in enumerate(parts) if "Sequence" in part]
    if len(texts) != 1 or parts[texts[0]]["Sequence"]["id"] != "A":
        return None
    special = processor["special_tokens"]
    before = _template_ids(parts[: texts[0]], special)
    after = _template_ids(parts[texts[0] :], special)
    return before, after


def _template_ids(parts: list[dict[str, Any]], special: dict[str, Any]) -> Ids:
    """Ids of the special tokens among the parts of a template."""
    tokens = [part["SpecialToken"]["id"] for part in parts if "SpecialToken" in part]
    return tuple(id for token in tokens for id in special[token]["ids"])


class _Side(NamedTuple):
    """What a post-processor puts on one side of a text.

    Attributes:
        place: before or after.
        name: bos or eos.
        found: Ids that the post-processor puts there.
        special: Id of the special token that belongs there.
    """

    place: str
    name: str
    found: Ids
    special: Ids


def _check_around(side: _Side, tok: Any, where: str) -> None:
    """Raises DataError if the post-processor puts anything but the special token there."""
    if side.found not in ((), side.special):
        found = [tok.id_to_token(id) for id in side.found]
        special = [tok.id_to_token(id) for id in side.special]
        raise DataError(
            f"{where}: puts {found} {side.place} a text, and its {side.name}_token is {special};"
            " only that one token is supported there: change post_processor"
        )


def _added_pieces(
    pieces: Mapping[str, int],
    ids: np.ndarray,
    kind: TokenizerClass,
    declared: Declared,
    source: str,
) -> list[dict[str, Any]]:
    """The tokens that the class and the folder add to the model's pieces, by id.

    Args:
        pieces: Text -> id of the model's pieces.
        ids: [pieces]: the id of each piece.
        kind: The tokenizer's class.
        declared: What the folder declares.
        source: Name of the folder, for messages.
    """
    end = int(ids.max()) + 1
    used = set(ids.tolist())
    last = [*kind.last, *(f"<extra_id_{n}>" for n in reversed(range(kind.sentinels)))]
    placed = (*kind.before, *((text, end + n) for n, text in enumerate(last)))
    added: dict[str, dict[str, Any]] = {
        text: {"id": id, "content": text, **_SPECIAL} for text, id in placed
    }
    for id, token in sorted(declared.added.items()):
        text = token["content"]
        known = added[text]["id"] if text in added else pieces.get(text)
        if known is None and id not in used:
            added[text] = token
        elif known != id:
            reason = "which is another piece of the model"
            if known is not None:
                reason = f"and has id {known}"
            raise DataError(
                f"{source}: added token {text!r} is declared as id {id}, {reason}; fix {CONFIG}"
            )
    for text in _special_texts(declared):
        if text not in pieces and text not in added:
            id = max([end - 1, *_ids_of(added.values())]) + 1
            added[text] = {"id": id, "content": text, **_SPECIAL}
    return sorted(added.values(), key=lambda token: token["id"])


def _ids_of(tokens: Iterable[Mapping[str, Any]]) -> list[int]:
    return [token["id"] for token in tokens]
