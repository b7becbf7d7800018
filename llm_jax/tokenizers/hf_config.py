"""What a Hugging Face model folder declares about its tokenizer, read from the files it is spread
over.

``tokenizer_config.json``, ``special_tokens_map.json``, ``added_tokens.json``,
``generation_config.json``, ``config.json`` and ``chat_template.jinja``. All of it is untrusted:
types and sizes are checked, and nothing is executed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from llm_jax.types import DataError

CONFIG, SPECIAL_MAP, ADDED = "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"
GENERATION, MODEL_CONFIG, TEMPLATE = "generation_config.json", "config.json", "chat_template.jinja"
DECLARING = (CONFIG, SPECIAL_MAP, ADDED, GENERATION, MODEL_CONFIG, TEMPLATE)
NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
MAX_MODEL, MAX_CONFIG, MAX_TEMPLATE, MAX_IDS = 256 << 20, 64 << 20, 1 << 20, 1 << 24
_FLAGS = {"single_word": False, "lstrip": False, "rstrip": False, "special": False}


class Declared(NamedTuple):
    """What the files say; nothing here is resolved against a vocabulary yet.

    named: bos_token, … -> text; None where a file says that there is none.
    extra: other special tokens, in order.
    added: id -> token with its flags, as Hugging Face's ``added_tokens`` have them.
    ids: bos, pad -> ids that generation_config.json, else config.json, names; eos -> those of both.
    add_bos, add_eos: as tokenizer_config.json says, or None.
    vocab_size: of the model, or 0.
    chat_templates: name -> Jinja template.
    config: the whole tokenizer_config.json.
    """

    named: dict[str, str | None]
    extra: tuple[str, ...]
    added: dict[int, dict[str, Any]]
    ids: dict[str, tuple[int, ...]]
    add_bos: bool | None
    add_eos: bool | None
    vocab_size: int
    chat_templates: dict[str, str]
    config: dict[str, Any]


def read_declared(files: Mapping[str, bytes], where: str) -> Declared:
    """Reads what there is of ``DECLARING`` among ``files`` (name -> bytes). Raises DataError;
    ``where`` names the folder.
    """
    read = {
        name: read_json(files[name], f"{where}/{name}") for name in DECLARING[:-1] if name in files
    }
    config, special = read.get(CONFIG, {}), read.get(SPECIAL_MAP, {})
    # Newer files have all in tokenizer_config.json; in older ones special_tokens_map.json is the
    # later word.
    first, second = (config, special) if "added_tokens_decoder" in config else (special, config)
    named = {
        name: _text(source[name], name, where)
        for source in (second, first)
        for name in NAMED
        if name in source
    }
    extra = [
        _text(token, key, where)
        for source in (first, second)
        for key in ("additional_special_tokens", "extra_special_tokens")
        for token in _tokens(source.get(key), key, where)
    ]
    size = read.get(MODEL_CONFIG, {})
    size = size.get(
        "vocab_size",
        (
            (size.get("text_config") or {}).get("vocab_size")
            if isinstance(size.get("text_config"), dict)
            else None
        ),
    )
    found = {name: _ids(read, f"{name}_token_id", where) for name in ("bos", "eos", "pad")}
    # A text begins with one token, and ends with any of several.
    ids = {name: [*by_file, ()][0] for name, by_file in found.items()}
    ids["eos"] = tuple(dict.fromkeys(id for in_file in found["eos"] for id in in_file))
    return Declared(
        named,
        tuple(dict.fromkeys(extra)),
        _added(
            config.get("added_tokens_decoder"),
            read.get(ADDED, {}),
            {*named.values(), *extra},
            where,
        ),
        ids,
        *(_flag(config, name, where) for name in ("add_bos_token", "add_eos_token")),
        0 if size is None else _id(size, "vocab_size", f"{where}/{MODEL_CONFIG}"),
        _templates(config.get("chat_template"), files.get(TEMPLATE), where),
        config,
    )


def read_json(data: bytes, where: str, limit: int = MAX_CONFIG) -> dict[str, Any]:
    """A JSON object of at most ``limit`` bytes. Raises DataError for anything else."""
    if len(data) > limit:
        raise DataError(
            f"{where}: {len(data):,} bytes; at most {limit:,} are read; is this the right file?"
        )
    try:
        value = json.loads(data.decode("utf-8-sig"))
        if b"\\u" in data:
            # An escaped half of a surrogate pair has no UTF-8 form.
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: not JSON ({error}); get the file again") from error
    if not isinstance(value, dict):
        raise DataError(
            f"{where}: holds a {type(value).__name__}, expected a JSON object; get the file again"
        )
    return value


def read_file(path: Path, limit: int) -> bytes:
    """The bytes of a file of at most ``limit`` bytes. Raises DataError if it is larger or
    unreadable.
    """
    try:
        if (size := path.stat().st_size) > limit:
            raise DataError(
                f"{str(path)!r}: {size:,} bytes; at most {limit:,} are read; is this the right"
                " file?"
            )
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{str(path)!r} cannot be read ({error.strerror})") from error


def _text(value: Any, name: str, where: str) -> str | None:
    """A token's text, which may be given as a string or as an object with its flags."""
    value = value.get("content") if isinstance(value, dict) else value
    if value is None or (isinstance(value, str) and value and len(value) < 1024):
        return value
    raise DataError(
        f"{where}: {name} is {str(value)[:80]!r}, expected a token's text; mend {CONFIG} or"
        f" {SPECIAL_MAP}"
    )


def _tokens(value: Any, name: str, where: str) -> list[Any]:
    # Newer files name the tokens: {"image_token": "<image>"}.
    value = list(value.values()) if isinstance(value, dict) else value or []
    if not isinstance(value, list):
        raise DataError(
            f"{where}: {name} is a {type(value).__name__}, expected a list of tokens; mend {CONFIG}"
        )
    return [token for token in value if token]


def _id(value: Any, name: str, where: str) -> int:
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < MAX_IDS:
        return value
    raise DataError(
        f"{where}: {name} is {str(value)[:80]!r}, expected a number from 0 to {MAX_IDS - 1}; mend"
        " the file"
    )


def _ids(read: dict[str, dict[str, Any]], name: str, where: str) -> list[tuple[int, ...]]:
    """One id or several, of each place that has them: generation_config.json, config.json and its
    text_config.
    """
    model = read.get(MODEL_CONFIG, {})
    inner = model.get("text_config")
    places = (
        (GENERATION, read.get(GENERATION, {})),
        (MODEL_CONFIG, model),
        (MODEL_CONFIG, inner if isinstance(inner, dict) else {}),
    )
    found = []
    for file, values in places:
        if (value := values.get(name)) is not None:
            several = value if isinstance(value, list) else [value]
            found.append(tuple(_id(v, name, f"{where}/{file}") for v in several))
    return found


def _flag(config: dict[str, Any], name: str, where: str) -> bool | None:
    value = config.get(name)
    if value is not None and not isinstance(value, bool):
        raise DataError(
            f"{where}/{CONFIG}: {name} is {str(value)[:80]!r}, expected true or false; mend the"
            " file"
        )
    return value


def _added(
    decoder: Any, older: dict[str, Any], special: set[str | None], where: str
) -> dict[int, dict[str, Any]]:
    """Added tokens by id: of added_tokens_decoder, or, where that is missing, of
    added_tokens.json.
    """
    if not isinstance(decoder, dict | None):
        raise DataError(
            f"{where}/{CONFIG}: added_tokens_decoder is a {type(decoder).__name__}, expected an"
            " object; mend the file"
        )
    if decoder is None:
        decoder = {id: {"content": text, "special": text in special} for text, id in older.items()}
    added = {}
    for key, token in decoder.items():
        number = (
            int(key)
            if isinstance(key, str) and key.isascii() and key.isdigit() and len(key) < 10
            else key
        )
        id = _id(number, f"id of added token {str(token)[:80]}", where)
        if (
            not isinstance(token, dict)
            or not isinstance(token.get("content"), str)
            or not token["content"]
        ):
            raise DataError(
                f"{where}: added token {id} is {str(token)[:80]!r}, expected an object with its"
                " text as content; mend the file"
            )
        flags = {name: bool(token.get(name, default)) for name, default in _FLAGS.items()}
        added[id] = {
            "id": id,
            "content": token["content"],
            **flags,
            "normalized": bool(token.get("normalized", not flags["special"])),
        }
    return added


def _templates(value: Any, file: bytes | None, where: str) -> dict[str, str]:
    """chat_template.jinja, else chat_template of tokenizer_config.json: one, or a list of named
    ones.
    """
    try:
        value = value if file is None else file.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{where}/{TEMPLATE}: not UTF-8 ({error}); get the file again") from error
    if isinstance(value, list):
        named = {t.get("name"): t.get("template") for t in value if isinstance(t, dict)}
    else:
        named = {} if value is None else {"default": value}
    for name, text in named.items():
        if not isinstance(name, str) or not isinstance(text, str):
            raise DataError(
                f"{where}/{CONFIG}: chat_template {str(name)[:40]!r} is a {type(text).__name__},"
                " expected a text; mend it"
            )
        if len(text) > MAX_TEMPLATE:
            raise DataError(
                f"{where}: chat template {name!r} of {len(text):,} characters; at most"
                f" {MAX_TEMPLATE:,} are read"
            )
    return named
