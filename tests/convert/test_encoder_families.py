"""Encoders and encoder–decoders: architectures of a family, names that files have had, and what
each config says.
"""

from __future__ import annotations

import json

import numpy as np
import pytest
from hf_builders import make_marian

from llm_jax.api.load import load
from llm_jax.checkpoints.open_run import open_run
from llm_jax.config import DecodeConfig, override
from llm_jax.config.model import ModelConfig
from llm_jax.convert.config_json import read_config, write_config
from llm_jax.convert.families import FAMILIES
from llm_jax.convert.hf import from_hf, to_hf
from llm_jax.convert.model_folder import parameter_shapes
from llm_jax.convert.source import Tensors
from llm_jax.convert.tensor_writer import TensorWriter
from llm_jax.convert.tensors import tensors
from llm_jax.decode import Generator
from llm_jax.tokenizers.open_tokenizer import open_tokenizer
from llm_jax.tokenizers.tokenizer import encoder_ids
from llm_jax.types import ConfigError, DataError

BERT = {
    "model_type": "bert",
    "architectures": ["BertForMaskedLM"],
    "vocab_size": 64,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 32,
}
ROBERTA = BERT | {
    "model_type": "roberta",
    "architectures": ["RobertaForMaskedLM"],
    "pad_token_id": 1,
}
MODERNBERT = BERT | {
    "model_type": "modernbert",
    "architectures": ["ModernBertForMaskedLM"],
    "num_hidden_layers": 4,
    "local_attention": 12,
}
T5 = {
    "model_type": "t5",
    "vocab_size": 64,
    "d_model": 16,
    "d_kv": 6,
    "d_ff": 24,
    "num_layers": 2,
    "num_decoder_layers": 3,
    "num_heads": 4,
    "pad_token_id": 0,
}
BART = {
    "model_type": "bart",
    "vocab_size": 64,
    "d_model": 16,
    "encoder_layers": 1,
    "decoder_layers": 2,
    "encoder_ffn_dim": 24,
    "decoder_ffn_dim": 24,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "decoder_start_token_id": 2,
}
MARIAN = BART | {"model_type": "marian"}
CLASSES = {
    "architectures": ["BertForSequenceClassification"],
    "id2label": {"0": "no", "1": "maybe", "2": "yes"},
}


def read(config, **more):
    return read_config(FAMILIES[config["model_type"]], config | more)


def names(config) -> dict[str, tuple[int, ...]]:
    family, model = FAMILIES[config["model_type"]], read(config)
    return {t.name: t.shape for t in tensors(family, model, parameter_shapes(model))}


def source(folder, config, given):
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    write_weights(folder, given)
    return folder


def write_weights(folder, given) -> None:
    with TensorWriter(
        folder / "model.safetensors", {n: (a.dtype, a.shape) for n, a in given.items()}
    ) as file:
        for name, array in given.items():
            file.write(name, array)


def arrays(shapes) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {n: rng.normal(size=s).astype(np.float32) for n, s in shapes.items()}


def test_each_architecture_has_its_own_head():
    masked, classes, alone = (
        read(BERT),
        read(BERT, **CLASSES),
        read(BERT, architectures=["BertModel"]),
    )
    assert masked.head.transform and masked.head.bias and masked.pooler is None
    assert (classes.head.transform, classes.pooler.layer, classes.pooler.num_classes) == (
        None,
        "tanh",
        3,
    )
    assert (alone.head.transform, alone.pooler.layer, alone.pooler.num_classes) == (None, "tanh", 0)
    assert read({k: v for k, v in BERT.items() if k != "architectures"}) == masked
    for model, name in (
        (masked, "ForMaskedLM"),
        (classes, "ForSequenceClassification"),
        (alone, "Model"),
    ):
        out = write_config(FAMILIES["bert"], model)
        assert (
            out["architectures"] == [f"Bert{name}"] and read_config(FAMILIES["bert"], out) == model
        )
    assert len(write_config(FAMILIES["bert"], classes)["id2label"]) == 3


def test_a_model_alone_has_names_without_the_prefix_and_keeps_them(tmp_path):
    config = BERT | {"architectures": ["BertModel"]}
    given = arrays({n.removeprefix("bert."): s for n, s in names(config).items()})
    from_hf(source(tmp_path / "a", config, given), tmp_path / "b")
    to_hf(tmp_path / "b", tmp_path / "c")
    found = Tensors(tmp_path / "c")
    assert found.shapes.keys() == given.keys() and all(
        found.read(n).tobytes() == x.tobytes() for n, x in given.items()
    )
    assert "pooler.dense.weight" in given and "encoder.layer.1.output.dense.weight" in given


def test_the_first_files_have_other_endings_and_heads_of_the_pretraining(tmp_path):
    given = arrays(names(BERT))
    from_hf(source(tmp_path / "new", BERT, given), tmp_path / "from new")
    old = {
        n.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
            "LayerNorm.bias", "LayerNorm.beta"
        ): x
        for n, x in given.items()
    }
    more = {
        "bert.pooler.dense.weight": (16, 16),
        "bert.pooler.dense.bias": (16,),
        "cls.seq_relationship.weight": (2, 16),
    }
    old |= arrays(more) | {
        "cls.predictions.decoder.weight": given["bert.embeddings.word_embeddings.weight"].copy()
    }
    from_hf(source(tmp_path / "old", BERT, old), tmp_path / "from old")
    files = [(tmp_path / f / "params.safetensors").read_bytes() for f in ("from new", "from old")]
    assert files[0] == files[1]
    # Of a model that has it, the pooler is read.
    config = BERT | {"architectures": ["BertModel"]}
    lacking = {n: x for n, x in arrays(names(config)).items() if n != "bert.pooler.dense.bias"}
    with pytest.raises(DataError, match="1 missing\n  bert.pooler.dense.bias"):
        from_hf(source(tmp_path / "lacking", config, lacking), tmp_path / "x")


def test_one_embedding_may_be_there_several_times_but_not_differ(tmp_path):
    untied = T5 | {"tie_word_embeddings": False}
    given = arrays(names(untied))
    given["encoder.embed_tokens.weight"] = given["decoder.embed_tokens.weight"] = given[
        "shared.weight"
    ]
    from_hf(source(tmp_path / "a", untied, given), tmp_path / "b")
    given["encoder.embed_tokens.weight"] = given["shared.weight"] + 1
    with pytest.raises(
        DataError,
        match=(
            "encoder.embed_tokens.weight differs from shared.weight, but t5 has one parameter for"
            " both"
        ),
    ):
        from_hf(source(tmp_path / "c", untied, given), tmp_path / "d")
    with pytest.raises(
        DataError,
        match=(
            "lm_head.weight differs from shared.weight, but config.json has tie_word_embeddings"
            " true; set it"
        ),
    ):
        from_hf(source(tmp_path / "e", T5, arrays(names(untied))), tmp_path / "f")


@pytest.mark.parametrize("config, head", [(BERT, "cls.predictions"), (ROBERTA, "lm_head")])
def test_an_untied_head_of_bert_has_its_bias_twice_but_not_two(tmp_path, config, head):
    untied = config | {"tie_word_embeddings": False}
    assert names(untied).keys() - names(config).keys() == {f"{head}.decoder.weight"}
    given = arrays(names(untied))
    both = given | {f"{head}.decoder.bias": given[f"{head}.bias"]}
    for name, stored in (("one", given), ("both", both)):
        from_hf(source(tmp_path / name, untied, stored), tmp_path / f"from {name}")
    files = [
        (tmp_path / f"from {name}" / "params.safetensors").read_bytes() for name in ("one", "both")
    ]
    assert files[0] == files[1]
    # Written is what both kinds of program read.
    to_hf(tmp_path / "from one", tmp_path / "back")
    found = Tensors(tmp_path / "back")
    assert found.shapes.keys() == both.keys() and all(
        found.read(n).tobytes() == x.tobytes() for n, x in both.items()
    )
    both[f"{head}.decoder.bias"] = given[f"{head}.bias"] + 1
    with pytest.raises(
        DataError,
        match=(
            rf"{head}.decoder.bias differs from {head}.bias, but {config['model_type']} has one"
            r" parameter for both"
        ),
    ):
        from_hf(source(tmp_path / "two", untied, both), tmp_path / "x")
    # Tied, there is one.
    from_hf(source(tmp_path / "tied", config, arrays(names(config))), tmp_path / "from tied")
    to_hf(tmp_path / "from tied", tmp_path / "tied back")
    assert Tensors(tmp_path / "tied back").shapes.keys() == names(config).keys()


def test_what_t5_says():
    first, flan = read(T5), read(T5, tie_word_embeddings=False, feed_forward_proj="gated-gelu")
    assert (
        first.encoder.num_layers,
        first.num_layers,
        first.head_dim,
        first.attention.scale,
        first.encoder.start_token,
    ) == (2, 3, 6, 1.0, 0)
    assert (first.mlp.kind, first.mlp.activation, first.embedding.tied, first.head.scale) == (
        "plain",
        "relu",
        True,
        16**-0.5,
    )
    assert (flan.mlp.kind, flan.mlp.activation, flan.embedding.tied, flan.head.scale) == (
        "gated",
        "gelu_tanh",
        False,
        1.0,
    )
    assert (
        read(T5, scale_decoder_outputs=False).head.scale == 1.0
        and read(T5, num_decoder_layers=None).num_layers == 2
    )
    for model in (first, flan):
        assert read_config(FAMILIES["t5"], write_config(FAMILIES["t5"], model)) == model
    # Relative positions have no end.
    assert (
        first.max_length == 512
        and read_config(FAMILIES["t5"], T5, max_length=2048).max_length == 2048
    )


def test_an_encoder_of_t5_alone_is_a_model_of_one_stack():
    alone = T5 | {
        "architectures": ["T5EncoderModel"],
        "tie_word_embeddings": False,
        "feed_forward_proj": "gated-gelu",
        "pad_token_id": 1,
    }
    model = read(alone)
    assert (
        model.causal,
        model.encoder,
        model.num_layers,
        model.embedding.tied,
    ) == (False, None, 2, True)
    found = names(alone)
    assert {n.split(".")[0] for n in found} == {
        "shared",
        "encoder",
    } and "encoder.block.1.layer.1.DenseReluDense.wi_1.weight" in found
    said = write_config(FAMILIES["t5"], model)
    assert (said["architectures"], said["num_layers"]) == (["T5EncoderModel"], 2) and read_config(
        FAMILIES["t5"], said
    ) == model


def test_mlps_of_the_encoder_may_have_another_width():
    config = BART | {"encoder_ffn_dim": 32}
    assert names(config)["model.encoder.layers.0.fc1.weight"] == (32, 16) and names(config)[
        "model.decoder.layers.0.fc1.weight"
    ] == (24, 16)
    # The same is no other, and 0 is the same.
    for width, written in ((32, 32), (24, 24), (0, 24)):
        said = write_config(FAMILIES["bart"], override(read(BART), {"encoder.mlp_dim": width}))
        assert (said["encoder_ffn_dim"], said["decoder_ffn_dim"]) == (written, 24)


def test_models_of_two_stacks_without_a_head_have_nothing_of_it(tmp_path):
    bare = T5 | {"architectures": ["T5Model"], "tie_word_embeddings": False}
    assert names(T5 | {"tie_word_embeddings": False}).keys() - names(bare).keys() == {
        "lm_head.weight"
    }
    for config, stem in ((BART, "Bart"), (MARIAN, "Marian")):
        bare = config | {"architectures": [f"{stem}Model"]}
        assert names(config).keys() - names(bare).keys() == {"final_logits_bias"}
        assert (
            write_config(FAMILIES[config["model_type"]], read(bare))["architectures"]
            == bare["architectures"]
        )
        # Files of a model with the head may be read without it, but of one with it they must hold
        # it.
        given = arrays(names(config))
        from_hf(source(tmp_path / f"{stem} a", bare, given), tmp_path / f"{stem} b")
        del given["final_logits_bias"]
        with pytest.raises(DataError, match="1 missing\n  final_logits_bias"):
            from_hf(source(tmp_path / f"{stem} c", config, given), tmp_path / f"{stem} d")


@pytest.mark.slow
def test_a_marian_model_reads_and_writes_text_and_keeps_its_tokenizer_s_files(tmp_path):
    folder = make_marian(tmp_path / "hf")
    vocabulary = json.loads((folder / "vocab.json").read_text())
    pad = vocabulary["<pad>"]
    config = MARIAN | {
        "vocab_size": pad + 1,
        "decoder_start_token_id": pad,
        "pad_token_id": pad,
        "eos_token_id": 0,
    }
    (folder / "config.json").write_text(json.dumps(config))
    write_weights(folder, arrays(names(config)))
    from_hf(folder, tmp_path / "ours")
    run, texts = (
        open_run(tmp_path / "ours"),
        ["the informação was", "the informação was", "hitherto"],
    )
    tokenizer = open_tokenizer(tmp_path / "ours/tokenizer")
    assert (run.config.model.encoder.start_token, tokenizer.vocab_size, tokenizer.eos_id) == (
        pad,
        pad + 1,
        0,
    )
    written = load(tmp_path / "ours").generate(texts, max_new_tokens=8, temperature=0.0)
    assert written[0] == written[1] and any(written)
    reads = encoder_ids(tokenizer, texts)
    ids = Generator(run.model, run.params).generate(
        reads, DecodeConfig(max_new_tokens=8, temperature=0.0), tokenizer.eos_ids
    )
    assert written == [tokenizer.decode(row) for row in ids]
    to_hf(tmp_path / "ours", tmp_path / "again")
    for name in ("source.spm", "target.spm", "vocab.json", "tokenizer_config.json"):
        assert (tmp_path / "again" / name).read_bytes() == (folder / name).read_bytes()


def test_positions_of_roberta_and_bart_begin_further_on_in_their_tables():
    assert (read(ROBERTA).positions.offset, read(ROBERTA).max_length) == (2, 30)
    assert write_config(FAMILIES["roberta"], read(ROBERTA))["max_position_embeddings"] == 32
    assert names(ROBERTA)["roberta.embeddings.position_embeddings.weight"] == (32, 16)
    assert (
        names(BART)["model.decoder.embed_positions.weight"] == (1026, 16)
        and read(BART).encoder.start_token == 2
    )
    assert names(BART)["final_logits_bias"] == (1, 64) and "final_logits_bias" not in names(
        BART | {"architectures": ["BartModel"]}
    )


def test_windows_of_modernbert_have_a_token_more_than_half_of_theirs():
    model = read(MODERNBERT)
    assert model.attention.window_pattern == (0, 7, 7) and (
        model.positions.theta,
        model.positions.windowed_theta,
    ) == (
        160000.0,
        10000.0,
    )
    assert write_config(FAMILIES["modernbert"], model)["local_attention"] == 12
    assert "model.layers.0.attn_norm.weight" not in names(
        MODERNBERT
    ) and "model.layers.1.attn_norm.weight" in names(MODERNBERT)


def test_keys_of_a_head_that_a_modernbert_does_not_have_are_read_and_written_back():
    m = read(MODERNBERT, architectures=["ModernBertModel"], classifier_bias=False)
    assert m.head.transform is None and m.pooler is None
    written = write_config(FAMILIES["modernbert"], m)
    assert written["architectures"] == ["ModernBertModel"]
    assert read_config(FAMILIES["modernbert"], written) == m


def test_classes_of_modernbert_are_of_the_layer_of_its_head():
    masked = read(MODERNBERT, classifier_pooling="mean")
    assert masked.pooler is None
    for name, pooling in (("cls", "first"), ("mean", "mean")):
        config = (
            MODERNBERT
            | CLASSES
            | {
                "architectures": ["ModernBertForSequenceClassification"],
                "classifier_pooling": name,
            }
        )
        model = read(config)
        assert (
            model.head.transform is not None,
            model.pooler.layer,
            model.pooler.reads,
            model.pooler.num_classes,
        ) == (
            True,
            "transform",
            pooling,
            3,
        )
        assert names(config).keys() - names(MODERNBERT).keys() == {
            "classifier.weight",
            "classifier.bias",
        }
        assert names(MODERNBERT).keys() - names(config).keys() == {"decoder.bias"}
        said = write_config(FAMILIES["modernbert"], model)
        assert (said["architectures"], said["classifier_pooling"]) == (
            config["architectures"],
            name,
        )
    assert write_config(FAMILIES["modernbert"], masked)["architectures"] == [
        "ModernBertForMaskedLM"
    ]


@pytest.mark.parametrize(
    "config, more, message",
    [
        (BERT, {"is_decoder": True}, "is_decoder is True; for bert only False can be represented"),
        (
            BERT,
            {"position_embedding_type": "relative_key"},
            "position_embedding_type is 'relative_key'",
        ),
        (ROBERTA, {"pad_token_id": None}, "pad_token_id is None; it must be of type int"),
        (
            BART,
            {"decoder_attention_heads": 2},
            "encoder_attention_heads is 4 and decoder_attention_heads is 2; only equal values can",
        ),
        (
            MARIAN,
            {"decoder_vocab_size": 65},
            "decoder_vocab_size is 65 and vocab_size is 64; only equal values",
        ),
        (
            MARIAN,
            {"share_encoder_decoder_embeddings": False},
            "share_encoder_decoder_embeddings is False",
        ),
        (
            T5,
            {"feed_forward_proj": "gated-mish"},
            "feed_forward_proj is 'gated-mish' with the activation 'mish'; supported are silu",
        ),
        (
            T5,
            {"decoder_start_token_id": "a"},
            "decoder_start_token_id is 'a'; it must be of type int",
        ),
        (
            MODERNBERT,
            {"classifier_activation": "relu"},
            "classifier_activation is 'relu'; only the activation of the layers, 'gelu'",
        ),
        (
            MODERNBERT,
            {"classifier_pooling": "max"},
            "classifier_pooling is 'max'; supported are cls, mean",
        ),
        (
            MODERNBERT,
            {"global_attn_every_n_layers": 0},
            "global_attn_every_n_layers is 0; it must be at least 1",
        ),
    ],
)
def test_what_cannot_be_said_is_named(config, more, message):
    with pytest.raises(ConfigError, match=message):
        read(config, **more)


def test_what_a_family_of_encoders_cannot_have_is_named():
    with pytest.raises(ConfigError, match="bert cannot represent model.causal = True"):
        write_config(FAMILIES["bert"], ModelConfig(vocab_size=64))
    with pytest.raises(
        ConfigError,
        match="t5 cannot represent model.encoder.mlp_dim = 32; export the model as another family",
    ):
        write_config(FAMILIES["t5"], override(read(T5), {"encoder.mlp_dim": 32}))
    with pytest.raises(ConfigError, match="llama cannot represent .*model.encoder = 'on'"):
        write_config(FAMILIES["llama"], read(T5))
