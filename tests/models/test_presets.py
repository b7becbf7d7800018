"""Presets have as many parameters as the models that were published."""

from __future__ import annotations

import jax
import pytest

from llm_jax.models import build
from llm_jax.models.presets import PRESETS, preset
from llm_jax.types import ConfigError

# Of the released weights (model cards, safetensors indices), tied embeddings counted once, DeepSeek-V3 without its multi-token head.
PUBLISHED = {
    "gpt2": 124_439_808, "gpt2-medium": 354_823_168, "gpt2-large": 774_030_080, "gpt2-xl": 1_557_611_200, "llama-2-7b": 6_738_415_616,
    "llama-2-13b": 13_015_864_320, "llama-2-70b": 68_976_648_192, "llama-3-8b": 8_030_261_248, "llama-3-70b": 70_553_706_496,
    "llama-3.1-8b": 8_030_261_248, "llama-3.1-70b": 70_553_706_496, "llama-3.1-405b": 405_853_388_800, "llama-3.2-1b": 1_235_814_400,
    "llama-3.2-3b": 3_212_749_824, "mistral-7b-v0.1": 7_241_732_096, "mistral-7b-v0.3": 7_248_023_552, "mixtral-8x7b": 46_702_792_704,
    "mixtral-8x22b": 140_620_634_112, "qwen2.5-0.5b": 494_032_768, "qwen2.5-1.5b": 1_543_714_304, "qwen2.5-3b": 3_085_938_688,
    "qwen2.5-7b": 7_615_616_512, "qwen2.5-14b": 14_770_033_664, "qwen2.5-32b": 32_763_876_352, "qwen2.5-72b": 72_706_203_648,
    "qwen3-0.6b": 596_049_920, "qwen3-1.7b": 1_720_574_976, "qwen3-4b": 4_022_468_096, "qwen3-8b": 8_190_735_360,
    "qwen3-14b": 14_768_307_200, "qwen3-32b": 32_762_123_264, "qwen3-30b-a3b": 30_532_122_624, "qwen3-235b-a22b": 235_093_634_560,
    "gemma-2b": 2_506_172_416, "gemma-7b": 8_537_680_896, "gemma-2-2b": 2_614_341_888, "gemma-2-9b": 9_241_705_984,
    "gemma-2-27b": 27_227_128_320, "gemma-3-270m": 268_098_176, "gemma-3-1b": 999_885_952, "phi-3-mini-4k": 3_821_079_552,
    "phi-3-medium-4k": 13_960_238_080, "phi-4": 14_659_507_200, "olmo-2-1b": 1_484_916_736, "olmo-2-7b": 7_298_617_344,
    "olmo-2-13b": 13_716_198_400, "olmo-2-32b": 32_234_279_936, "smollm2-135m": 134_515_008, "smollm2-360m": 361_821_120,
    "smollm2-1.7b": 1_711_376_384, "smollm3-3b": 3_075_098_624, "granite-3.1-2b": 2_533_531_648, "granite-3.1-8b": 8_170_848_256,
    "pythia-70m": 70_426_624, "pythia-160m": 162_322_944, "pythia-410m": 405_334_016, "pythia-1b": 1_011_781_632,
    "pythia-1.4b": 1_414_647_808, "pythia-2.8b": 2_775_208_960, "pythia-6.9b": 6_857_302_016, "pythia-12b": 11_846_072_320,
    "deepseek-v2-lite": 15_706_484_224, "deepseek-v2": 235_741_434_880, "deepseek-v3": 671_026_419_200, "gpt-oss-20b": 20_914_757_184,
    "gpt-oss-120b": 116_829_156_672,
}  # fmt: skip


@pytest.mark.parametrize("name", PRESETS)
def test_parameters_are_as_many_as_published(name):
    shapes = jax.eval_shape(build(preset(name)).init, jax.random.key(0))
    assert sum(a.size for a in jax.tree.leaves(shapes)) == PUBLISHED[name]


def test_every_preset_has_a_published_count():
    assert set(PUBLISHED) == set(PRESETS)


def test_an_unknown_preset_names_the_nearest():
    with pytest.raises(ConfigError, match="unknown preset 'llama-3.1-9b'; there are llama-3.1-8b"):
        preset("llama-3.1-9b")
