"""Marian's tokenizer: a model for each language, one vocabulary, and what its files may not say."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import sentencepiece
from hf_builders import make_marian, make_tokenizer

from llm_jax.config import DataConfig, override
from llm_jax.data.loading.loader import Loader
from llm_jax.data.prepare.pipeline import prepare
from llm_jax.objectives import make_transform
from llm_jax.tokenizers.export_tokenizer import export_tokenizer
from llm_jax.tokenizers.import_tokenizer import import_tokenizer
from llm_jax.tokenizers.open_tokenizer import open_tokenizer
from llm_jax.tokenizers.tokenizer import encoder_ids
from llm_jax.types import DataError

TEXT = "the informação was unwritten hitherto"


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    return make_marian(tmp_path_factory.mktemp("marian") / "source")


@pytest.fixture(scope="module")
def made(source):
    return import_tokenizer(source, source.parent / "out")


@pytest.fixture(scope="module")
def vocabulary(source) -> dict[str, int]:
    return json.loads((source / "vocab.json").read_text())


def cut(source: Path, name: str, text: str) -> list[str]:
    return sentencepiece.SentencePieceProcessor(model_file=str(source / name)).EncodeAsPieces(text)


def change(folder: Path, name: str, **values) -> None:
    (folder / name).write_text(json.dumps(json.loads((folder / name).read_text()) | values))


def test_each_side_is_cut_by_its_own_model_and_looked_up_in_one_vocabulary(
    source, made, vocabulary
):
    reads, writes = cut(source, "source.spm", TEXT), cut(source, "target.spm", TEXT)
    assert reads != writes
    assert encoder_ids(made, [TEXT]) == [[*map(vocabulary.__getitem__, reads), vocabulary["</s>"]]]
    assert made.encode(TEXT) == [*map(vocabulary.__getitem__, writes)]
    assert made.decode(made.encode(TEXT)) == made.decode(encoder_ids(made, [TEXT])[0]) == TEXT
    assert (made.eos_ids, made.unk_id, made.pad_id, made.bos_id) == (
        (0,),
        1,
        vocabulary["<pad>"],
        -1,
    )
    assert (made.add_bos, made.add_eos, made.lossless, made.vocab_size) == (
        False,
        True,
        False,
        len(vocabulary),
    )


def test_the_code_of_a_language_is_looked_up_whole_and_only_before_a_text(made, vocabulary):
    code, (plain,) = vocabulary[">>pt<<"], encoder_ids(made, [TEXT])
    assert encoder_ids(made, [f">>pt<<{TEXT}", f">>pt<< {TEXT}"]) == [
        [code, *plain],
        [code, *plain],
    ]
    assert encoder_ids(made, [f">>xx<<{TEXT}"]) == [[made.unk_id, *plain]]
    assert code not in encoder_ids(made, [f"the >>pt<< {TEXT}"])[0]
    assert made.decode([code, *plain]) == f">>pt<< {TEXT}"


def test_a_special_token_in_a_text_is_that_token_and_a_piece_without_an_id_is_unknown(
    made, vocabulary
):
    assert made.encode("the</s>the") == [*made.encode("the"), 0, *made.encode("the")]
    assert (
        made.encode("<pad>") == [made.pad_id]
        and made.is_control(made.pad_id)
        and made.is_control(0)
        and not made.is_control(1)
    )
    assert made.encode("\U00013000")[-1] == made.unk_id and made.decode([made.unk_id]) == "\ufffd"
    with pytest.raises(DataError, match="unpaired surrogate"):
        made.encode("a\ud800")


def test_ids_of_a_padded_embedding_stand_for_nothing(source, tmp_path):
    folder = shutil.copytree(source, tmp_path / "padded")
    (folder / "config.json").write_text(json.dumps({"vocab_size": 4096}))
    t = import_tokenizer(folder, tmp_path / "out")
    assert (
        t.vocab_size == 4096
        and t.is_control(4095)
        and t.decode([4095]) == ""
        and t.piece(4095) == "<unused 4095>"
    )


def test_opened_again_it_is_the_same_and_its_files_go_back_byte_for_byte(source, made, tmp_path):
    again = open_tokenizer(made.path)
    assert again.encode(TEXT) == made.encode(TEXT) and again.fingerprint == made.fingerprint
    written = export_tokenizer(made.path, tmp_path / "out")
    assert sorted(path.name for path in written) == sorted(path.name for path in source.iterdir())
    assert all(path.read_bytes() == (source / path.name).read_bytes() for path in written)


@pytest.mark.parametrize("name", ["source.spm", "target.spm", "vocab.json"])
def test_every_file_is_part_of_the_fingerprint_and_checked_when_opened(
    source, made, tmp_path, name
):
    folder = shutil.copytree(source, tmp_path / "other")
    if name == "vocab.json":
        change(folder, name, **{">>fr<<": 5000})
    else:
        shutil.copy(
            folder / ("target.spm" if name == "source.spm" else "source.spm"), folder / name
        )
    assert import_tokenizer(folder, tmp_path / "out").fingerprint != made.fingerprint
    damaged = shutil.copytree(made.path, tmp_path / "damaged")
    (damaged / name).write_bytes((folder / name).read_bytes())
    with pytest.raises(DataError, match=f"{name}' has changed"):
        open_tokenizer(damaged)
    (damaged / name).unlink()
    with pytest.raises(DataError, match=f"{name}' is missing"):
        open_tokenizer(damaged)


def test_files_that_do_not_go_together_are_refused(source, tmp_path):
    def refused(match: str, name: str = "", data: bytes | None = None, **values) -> None:
        folder = shutil.copytree(source, tmp_path / "bad", dirs_exist_ok=True)
        if values:
            change(folder, name, **values)
        elif data is None:
            (folder / name).unlink()
        else:
            (folder / name).write_bytes(data)
        with pytest.raises(DataError, match=match):
            import_tokenizer(folder, tmp_path / "out")
        assert not (tmp_path / "out").exists()

    refused("has no target.spm, which goes with source.spm, vocab.json", "target.spm")
    refused("has no vocab.json", "vocab.json")
    refused("target.spm: not a SentencePiece model", "target.spm", b"no model")
    refused("source.spm: not a SentencePiece model", "source.spm", b"")
    refused("must give every piece an id of its own", "vocab.json", the=0)
    refused("must give every piece an id of its own", "vocab.json", the="0")
    refused("lacks the special token '<unk>'", "vocab.json", b'{"</s>": 0, "<pad>": 1}')
    refused("separate_vocabs is true", "tokenizer_config.json", separate_vocabs=True)
    refused(
        "lacks the special token '<mask>'",
        "tokenizer_config.json",
        extra_special_tokens=["<mask>"],
    )
    strips = {
        "content": "</s>",
        "lstrip": True,
        "rstrip": False,
        "single_word": False,
        "normalized": False,
        "special": True,
    }
    refused(
        "added token '</s>' does not have the id 0",
        "tokenizer_config.json",
        added_tokens_decoder={"0": strips},
    )
    refused(
        "added token '</s>' does not have the id 3",
        "tokenizer_config.json",
        added_tokens_decoder={"3": strips | {"lstrip": False}},
    )


def test_pairs_are_prepared_with_the_model_of_each_side(made, tmp_path):
    pairs = [
        {"en": f"the {word} of the", "pt": f"informação {word} não é"}
        for word in ("coração", "state", "they've", "maçã", "João")
    ]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    options = {
        "text_field": "pt",
        "encoder_field": "en",
        "block_size": 32,
        "encoder_block_size": 32,
        "workers": 1,
    }
    prepare(
        (str(tmp_path / "pairs.jsonl"),),
        made.path,
        tmp_path / "shards",
        validation_fraction=0.0,
        **options,
    )
    transform = make_transform(
        override(DataConfig(), {"objective": "pairs", "objective.encoder_length": 32}),
        made.pad_id,
        made,
    )
    loader = Loader(
        [tmp_path / "shards"],
        split="train",
        seq_length=32,
        batch_size=1,
        seed=0,
        transform=transform,
    )
    seen = set()
    for row in range(len(loader.components[0])):
        batch = loader.components[0].batch([row])
        for n in range(1, batch.inputs.segment_ids.max() + 1):
            reads, writes = (
                x[segments == n].tolist()
                for x, segments in (
                    (batch.encoder.ids, batch.encoder.segment_ids),
                    (batch.targets, batch.inputs.segment_ids),
                )
            )
            seen.add((tuple(reads), tuple(writes)))
    assert seen == {
        (tuple(encoder_ids(made, [p["en"]])[0]), (*made.encode(p["pt"]), made.eos_id))
        for p in pairs
    }


def test_files_with_settings_that_change_the_ids_are_refused(source, tmp_path):
    def refused(match: str, **values) -> None:
        folder = shutil.copytree(source, tmp_path / "bad", dirs_exist_ok=True)
        change(folder, "tokenizer_config.json", **values)
        with pytest.raises(DataError, match=match):
            import_tokenizer(folder, tmp_path / "out")

    refused(
        "sp_model_kwargs {'reverse': True} would change how text is split",
        sp_model_kwargs={"reverse": True},
    )
    refused("lacks the special token '<s>'", bos_token="<s>")
    refused(
        "tokenizer_class 'T5Tokenizer' with source.spm and target.spm is unknown",
        tokenizer_class="T5Tokenizer",
    )


def test_a_tokenizer_json_beside_marian_s_files_is_kept_and_not_read(source, made, tmp_path):
    folder = shutil.copytree(source, tmp_path / "both")
    make_tokenizer("unigram").save(str(folder / "tokenizer.json"))
    t = import_tokenizer(folder, tmp_path / "out")
    assert t.encode(TEXT) == made.encode(TEXT) and t.reader.encode(TEXT) == made.reader.encode(TEXT)
    assert (t.path / "tokenizer.json").read_bytes() == (folder / "tokenizer.json").read_bytes()


@pytest.mark.parametrize(
    "values",
    [
        {"vocab_size": 5},
        {"vocab_size": -1},
        {"vocab_size": True},
        {"special": {}},
        {"special": {"bos": -1, "pad": 3, "unk": -1}},
        {"special": {"bos": -1, "pad": 3, "unk": 2**70}},
        {"model": "x"},
        {"files": {}},
        {"files": 3},
        {"add_eos": None},
        {"eos_ids": []},
        {"eos_ids": [-3]},
        {"added_tokens": ["a"]},
        {"added_tokens": [{"content": "a", "id": 9**9, "special": True}]},
        {"piece_ids": 1},
    ],
)
def test_a_record_changed_by_hand_is_refused(made, tmp_path, values):
    folder = shutil.copytree(made.path, tmp_path / "changed")
    change(folder, "imported.json", **values)
    with pytest.raises(DataError, match="import the tokenizer again"):
        open_tokenizer(folder)


def test_a_vocabulary_that_is_no_utf_8_is_refused(source, tmp_path):
    folder = shutil.copytree(source, tmp_path / "bad")
    for data in (
        '{"</s>": 0, "\ud800": 1}'.encode("utf-16", "surrogatepass"),
        b'{"</s>": 0, "\xed\xa0\x80": 1}',
    ):
        (folder / "vocab.json").write_bytes(data)
        with pytest.raises(DataError, match="vocab.json: not valid JSON"):
            import_tokenizer(folder, tmp_path / "out")
