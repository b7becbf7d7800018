"""Presets have as many parameters as the models that were published."""

from __future__ import annotations

import jax
import pytest
from pairwise import parametrize

from llm_jax.convert.canonical import resolved
from llm_jax.convert.config_json import read_config, write_config
from llm_jax.convert.families import FAMILIES
from llm_jax.models import build
from llm_jax.models.presets import PRESETS, preset
from llm_jax.types import ConfigError

# Of the released weights (model cards, safetensors indices), tied embeddings counted once,
# DeepSeek-V3 without its multi-token head. Of encoders what transformers counts for …ForMaskedLM:
# dense layer, norm and bias of the masked-token head, neither pooler nor prediction of the next
# sentence, which the first BERT has besides. Of encoder–decoders …ForConditionalGeneration: one
# embedding for both stacks, and in T5 1.1 and FLAN-T5 an output projection; in BART and Marian also
# the bias on the logits, which transformers holds as a buffer and does not count, and not Marian's
# two tables of positions, which are computed and it counts.
PUBLISHED = {
    "gpt2": 124_439_808,
    "gpt2-medium": 354_823_168,
    "gpt2-large": 774_030_080,
    "gpt2-xl": 1_557_611_200,
    "llama-2-7b": 6_738_415_616,
    "llama-2-13b": 13_015_864_320,
    "llama-2-70b": 68_976_648_192,
    "llama-3-8b": 8_030_261_248,
    "llama-3-70b": 70_553_706_496,
    "llama-3.1-8b": 8_030_261_248,
    "llama-3.1-70b": 70_553_706_496,
    "llama-3.1-405b": 405_853_388_800,
    "llama-3.2-1b": 1_235_814_400,
    "llama-3.2-3b": 3_212_749_824,
    "mistral-7b-v0.1": 7_241_732_096,
    "mistral-7b-v0.3": 7_248_023_552,
    "mixtral-8x7b": 46_702_792_704,
    "mixtral-8x22b": 140_620_634_112,
    "qwen2.5-0.5b": 494_032_768,
    "qwen2.5-1.5b": 1_543_714_304,
    "qwen2.5-3b": 3_085_938_688,
    "qwen2.5-7b": 7_615_616_512,
    "qwen2.5-14b": 14_770_033_664,
    "qwen2.5-32b": 32_763_876_352,
    "qwen2.5-72b": 72_706_203_648,
    "qwen3-0.6b": 596_049_920,
    "qwen3-1.7b": 1_720_574_976,
    "qwen3-4b": 4_022_468_096,
    "qwen3-8b": 8_190_735_360,
    "qwen3-14b": 14_768_307_200,
    "qwen3-32b": 32_762_123_264,
    "qwen3-30b-a3b": 30_532_122_624,
    "qwen3-235b-a22b": 235_093_634_560,
    "gemma-2b": 2_506_172_416,
    "gemma-7b": 8_537_680_896,
    "gemma-2-2b": 2_614_341_888,
    "gemma-2-9b": 9_241_705_984,
    "gemma-2-27b": 27_227_128_320,
    "gemma-3-270m": 268_098_176,
    "gemma-3-1b": 999_885_952,
    "phi-3-mini-4k": 3_821_079_552,
    "phi-3-medium-4k": 13_960_238_080,
    "phi-4": 14_659_507_200,
    "olmo-2-1b": 1_484_916_736,
    "olmo-2-7b": 7_298_617_344,
    "olmo-2-13b": 13_716_198_400,
    "olmo-2-32b": 32_234_279_936,
    "smollm2-135m": 134_515_008,
    "smollm2-360m": 361_821_120,
    "smollm2-1.7b": 1_711_376_384,
    "smollm3-3b": 3_075_098_624,
    "granite-3.1-2b": 2_533_531_648,
    "granite-3.1-8b": 8_170_848_256,
    "stablelm-3b-4e1t": 2_795_443_200,
    "stablelm-2-1.6b": 1_644_515_328,
    "pythia-70m": 70_426_624,
    "pythia-160m": 162_322_944,
    "pythia-410m": 405_334_016,
    "pythia-1b": 1_011_781_632,
    "pythia-1.4b": 1_414_647_808,
    "pythia-2.8b": 2_775_208_960,
    "pythia-6.9b": 6_857_302_016,
    "pythia-12b": 11_846_072_320,
    "deepseek-v2-lite": 15_706_484_224,
    "deepseek-v2": 235_741_434_880,
    "deepseek-v3": 671_026_419_200,
    "gpt-oss-20b": 20_914_757_184,
    "gpt-oss-120b": 116_829_156_672,
    "bert-base-uncased": 109_514_298,
    "bert-base-cased": 108_340_804,
    "bert-large-uncased": 335_174_458,
    "bert-large-cased": 333_610_308,
    "roberta-base": 124_697_433,
    "roberta-large": 355_412_057,
    "distilbert-base-uncased": 66_985_530,
    "distilbert-base-cased": 65_812_036,
    "modernbert-base": 149_655_232,
    "modernbert-large": 395_881_664,
    "t5-small": 60_506_624,
    "t5-base": 222_903_552,
    "t5-large": 737_668_096,
    "t5-3b": 2_851_598_336,
    "t5-11b": 11_307_321_344,
    "t5-v1.1-small": 76_961_152,
    "t5-v1.1-base": 247_577_856,
    "t5-v1.1-large": 783_150_080,
    "t5-v1.1-xl": 2_849_757_184,
    "t5-v1.1-xxl": 11_135_332_352,
    "flan-t5-small": 76_961_152,
    "flan-t5-base": 247_577_856,
    "flan-t5-large": 783_150_080,
    "flan-t5-xl": 2_849_757_184,
    "flan-t5-xxl": 11_135_332_352,
    "bart-base": 139_420_416 + 50_265,
    "bart-large": 406_291_456 + 50_265,
    "opus-mt-en-de": 74_410_496 + 58_101 - 2 * 512 * 512,
}


# Beginning of a preset's name -> the family that its files are of.
FAMILY = {
    "gpt2": "gpt2",
    "llama": "llama",
    "mistral": "mistral",
    "mixtral": "mixtral",
    "qwen2.5": "qwen2",
    "qwen3": "qwen3",
    "gemma-": "gemma",
    "gemma-2-": "gemma2",
    "gemma-3-": "gemma3_text",
    "phi": "phi3",
    "olmo": "olmo2",
    "smollm2": "llama",
    "smollm3": "smollm3",
    "granite": "granite",
    "stablelm": "stablelm",
    "pythia": "gpt_neox",
    "deepseek-v2": "deepseek_v2",
    "deepseek-v3": "deepseek_v3",
    "gpt-oss": "gpt_oss",
    "qwen3-30b": "qwen3_moe",
    "qwen3-235b": "qwen3_moe",
    "bert": "bert",
    "roberta": "roberta",
    "distilbert": "distilbert",
    "modernbert": "modernbert",
    "t5": "t5",
    "flan-t5": "t5",
    "bart": "bart",
    "opus-mt": "marian",
}


def family_of(name: str) -> str:
    return FAMILY[max((begin for begin in FAMILY if name.startswith(begin)), key=len)]


def first_of_each_family() -> list[list[str]]:
    """The first preset of each family of files."""
    return [[name] for name in {family_of(name): name for name in reversed(list(PRESETS))}.values()]


@parametrize("name", [[name] for name in PRESETS], by_default=first_of_each_family())
def test_parameters_are_as_many_as_published(name):
    shapes = jax.eval_shape(build(preset(name)).init, jax.random.key(0))
    assert sum(a.size for a in jax.tree.leaves(shapes)) == PUBLISHED[name]


@pytest.mark.parametrize("name", PRESETS)
def test_its_family_can_say_all_of_a_preset_and_reads_the_same_back(name):
    family = FAMILIES[family_of(name)]
    said = write_config(family, preset(name))
    assert said["architectures"] == [family.architecture]
    assert resolved(read_config(family, said)) == resolved(preset(name))


def test_every_preset_has_a_published_count():
    assert set(PUBLISHED) == set(PRESETS)


def test_an_unknown_preset_names_the_nearest():
    with pytest.raises(ConfigError, match="unknown preset 'llama-3.1-9b'; there are llama-3.1-8b"):
        preset("llama-3.1-9b")
