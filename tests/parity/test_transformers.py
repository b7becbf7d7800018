"""Our decoder against transformers' Llama and GPT-2: the same random weights give the same logits and the same greedy text.

The weight mapping here is for these tests only; it writes out by hand which of their matrices is which of our kernels.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="parity tests need the extra: pip install -e '.[parity]'")
transformers = pytest.importorskip("transformers", reason="parity tests need the extra: pip install -e '.[parity]'")

from llm_jax.config import ExecutionConfig, ModelConfig  # noqa: E402
from llm_jax.models import Model, build  # noqa: E402
from llm_jax.ops import rope_frequencies  # noqa: E402
from llm_jax.types import Batch, Params  # noqa: E402

pytestmark = pytest.mark.parity

TOLERANCE = 1e-4
VOCAB, LAYERS, WIDTH, HEADS, HIDDEN, LENGTH = 131, 3, 48, 4, 88, 1024
# Our settings beside theirs. The long context is eight times the original one, so every branch of the scaling is in use.
SCALINGS = {
    "none": ({}, None),
    "linear": ({"rope_scaling": "linear", "rope_factor": 4.0}, {"rope_type": "linear", "factor": 4.0}),
    "llama3": (
        {"rope_scaling": "llama3", "rope_factor": 8.0, "rope_original_length": 128, "rope_low_frequency": 1.0,
         "rope_high_frequency": 4.0},
        {"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 128, "low_freq_factor": 1.0,
         "high_freq_factor": 4.0},
    ),
    "yarn": (
        {"rope_scaling": "yarn", "rope_factor": 8.0, "rope_original_length": 128},
        {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 128, "beta_fast": 32.0, "beta_slow": 1.0},
    ),
}


def array(x) -> np.ndarray:
    return x.detach().numpy().astype(np.float32)


def randomise(model, seed: int) -> None:
    """Every weight away from its initial value, norms and biases too, so that a forgotten one shows."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            noise = torch.randn(p.shape, generator=generator)
            is_scale = p.ndim == 1 and name.endswith("weight")
            p.copy_(1 + 0.3 * noise if is_scale else (0.3 if p.ndim == 1 else 1.5 * p.shape[-1] ** -0.5) * noise)


def stack(layers: list[Params]) -> Params:
    return jax.tree.map(lambda *xs: jnp.stack([jnp.asarray(x) for x in xs]), *layers)


# Llama


def llama(seed: int, *, kv_heads: int, tied: bool, scaling: str, theta: float = 10000.0):
    """Their model, our config and our parameters with the same weights."""
    ours, theirs = SCALINGS[scaling]
    rope = {"rope_type": "default", **(theirs or {}), "rope_theta": theta}
    reference = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=VOCAB, hidden_size=WIDTH, intermediate_size=HIDDEN, num_hidden_layers=LAYERS, num_attention_heads=HEADS,
            num_key_value_heads=kv_heads, max_position_embeddings=LENGTH, rms_norm_eps=1e-5, tie_word_embeddings=tied,
            rope_parameters=rope, attn_implementation="eager", bos_token_id=None, eos_token_id=None, pad_token_id=None,
        )
    ).eval()
    randomise(reference, seed)
    config = ModelConfig(
        vocab_size=VOCAB, num_layers=LAYERS, embed_dim=WIDTH, num_heads=HEADS, num_kv_heads=kv_heads, mlp_dim=HIDDEN,
        max_length=LENGTH, rope_theta=theta, tied_embeddings=tied, **ours,
    )
    return reference, config, llama_params(reference, config)


def llama_params(reference, c: ModelConfig) -> Params:
    def into_heads(linear, heads: int) -> dict:
        return {"kernel": array(linear.weight).T.reshape(c.embed_dim, heads, c.head_size)}

    def layer(block) -> Params:
        a, m = block.self_attn, block.mlp
        return {
            "attention_norm": {"scale": array(block.input_layernorm.weight)},
            "attention": {
                "query": into_heads(a.q_proj, c.num_heads),
                "key": into_heads(a.k_proj, c.kv_heads),
                "value": into_heads(a.v_proj, c.kv_heads),
                "out": {"kernel": array(a.o_proj.weight).T.reshape(c.num_heads, c.head_size, c.embed_dim)},
            },
            "mlp_norm": {"scale": array(block.post_attention_layernorm.weight)},
            "mlp": {
                "gate": {"kernel": array(m.gate_proj.weight).T},
                "up": {"kernel": array(m.up_proj.weight).T},
                "down": {"kernel": array(m.down_proj.weight).T},
            },
        }

    params = {
        "embed": {"embedding": array(reference.model.embed_tokens.weight)},
        "layers": stack([layer(b) for b in reference.model.layers]),
        "final_norm": {"scale": array(reference.model.norm.weight)},
    }
    if not c.tied_embeddings:
        params["head"] = {"kernel": array(reference.lm_head.weight).T}
    return params


# GPT-2


def gpt2(seed: int):
    reference = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            vocab_size=VOCAB, n_embd=WIDTH, n_layer=LAYERS, n_head=HEADS, n_inner=HIDDEN, n_positions=LENGTH,
            activation_function="gelu_new", attn_implementation="eager", bos_token_id=None, eos_token_id=None,
        )
    ).eval()
    randomise(reference, seed)
    config = ModelConfig(
        vocab_size=VOCAB, num_layers=LAYERS, embed_dim=WIDTH, num_heads=HEADS, mlp_dim=HIDDEN, max_length=LENGTH, norm="layer",
        norm_bias=True, positions="learned", mlp="plain", activation="gelu_tanh", qkv_bias=True, out_bias=True, mlp_bias=True,
    )
    return reference, config, gpt2_params(reference, config)


def gpt2_params(reference, c: ModelConfig) -> Params:
    """GPT-2's Conv1D keeps kernels as [in, out]; its c_attn is query, key and value side by side."""
    D, N, H = c.embed_dim, c.num_heads, c.head_size

    def norm(n) -> dict:
        return {"scale": array(n.weight), "bias": array(n.bias)}

    def dense(n) -> dict:
        return {"kernel": array(n.weight), "bias": array(n.bias)}

    def layer(block) -> Params:
        kernels = array(block.attn.c_attn.weight).reshape(D, 3, N, H)
        biases = array(block.attn.c_attn.bias).reshape(3, N, H)
        qkv = {n: {"kernel": kernels[:, i], "bias": biases[i]} for i, n in enumerate(("query", "key", "value"))}
        out = {"kernel": array(block.attn.c_proj.weight).reshape(N, H, D), "bias": array(block.attn.c_proj.bias)}
        return {
            "attention_norm": norm(block.ln_1),
            "attention": {**qkv, "out": out},
            "mlp_norm": norm(block.ln_2),
            "mlp": {"up": dense(block.mlp.c_fc), "down": dense(block.mlp.c_proj)},
        }

    body = reference.transformer
    return {
        "embed": {"embedding": array(body.wte.weight)},
        "positions": {"positions": array(body.wpe.weight)},
        "layers": stack([layer(b) for b in body.h]),
        "final_norm": norm(body.ln_f),
    }


# What is compared


def rows(tokens: np.ndarray, start: int = 0) -> Batch:
    tokens = jnp.asarray(tokens, jnp.int32)
    positions = start + jnp.broadcast_to(jnp.arange(tokens.shape[1], dtype=jnp.int32), tokens.shape)
    return Batch(tokens, tokens, jnp.ones(tokens.shape, bool), jnp.ones_like(tokens), positions)


def random_tokens(seed: int, length: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, VOCAB, (2, length))


def checked_build(config: ModelConfig, params: Params, layers: str = "unroll") -> Model:
    """Our model; its own parameter tree must have exactly the mapped names and shapes."""
    model = build(config, ExecutionConfig(layers=layers, compute_dtype="float32"))
    want = jax.tree.map(lambda x: x.shape, jax.eval_shape(model.init, jax.random.key(0)))
    assert jax.tree.map(jnp.shape, params) == want
    return model


def our_logits(model: Model, params: Params, tokens: np.ndarray) -> np.ndarray:
    return np.asarray(jax.jit(lambda p, b: model.logits(p, model.apply(p, b).hidden))(params, rows(tokens)))


def assert_same_logits(reference, config: ModelConfig, params: Params, tokens: np.ndarray, layers: str = "unroll") -> None:
    with torch.no_grad():
        theirs = reference(torch.tensor(tokens)).logits.numpy()
    ours = our_logits(checked_build(config, params, layers), params, tokens)
    assert np.std(theirs) > 0.3, "the logits are too flat to tell anything"
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=TOLERANCE)


def our_greedy(model: Model, params: Params, prompt: np.ndarray, new: int) -> np.ndarray:
    """Greedy continuation by ``model.apply`` with a cache: the prompt at once, then token by token."""

    @jax.jit
    def step(cache, tokens, start):
        out = model.apply(params, rows(tokens, start), cache)
        return jnp.argmax(model.logits(params, out.hidden[:, -1]), axis=-1), out.cache

    token, cache = step(model.init_cache(prompt.shape[0], prompt.shape[1] + new), prompt, 0)
    tokens = [token]
    for i in range(new - 1):
        token, cache = step(cache, tokens[-1][:, None], prompt.shape[1] + i)
        tokens.append(token)
    return np.stack(tokens, axis=1)


def assert_same_greedy(reference, config: ModelConfig, params: Params, prompt: np.ndarray, new: int = 16) -> None:
    text = torch.tensor(prompt)
    with torch.no_grad():
        for _ in range(new):
            text = torch.cat([text, reference(text).logits[:, -1:].argmax(-1)], dim=1)
    ours = our_greedy(checked_build(config, params), params, prompt, new)
    np.testing.assert_array_equal(ours, text[:, prompt.shape[1] :].numpy())


@pytest.mark.parametrize("scaling", SCALINGS)
@pytest.mark.parametrize(("kv_heads", "tied"), [(2, False), (1, True), (4, True)], ids=["gqa-untied", "mqa-tied", "mha-tied"])
def test_llama_logits(scaling: str, kv_heads: int, tied: bool) -> None:
    for seed in range(2):
        reference, config, params = llama(seed, kv_heads=kv_heads, tied=tied, scaling=scaling)
        assert_same_logits(reference, config, params, random_tokens(seed, 48))


@pytest.mark.parametrize("scaling", SCALINGS)
def test_llama_logits_at_long_positions(scaling: str) -> None:
    reference, config, params = llama(5, kv_heads=2, tied=False, scaling=scaling, theta=500000.0)
    assert_same_logits(reference, config, params, random_tokens(5, LENGTH))


def test_llama_logits_with_scanned_layers() -> None:
    reference, config, params = llama(6, kv_heads=2, tied=False, scaling="none")
    assert_same_logits(reference, config, params, random_tokens(6, 48), layers="scan")


@pytest.mark.parametrize("scaling", SCALINGS)
def test_llama_greedy_text_through_the_cache(scaling: str) -> None:
    reference, config, params = llama(7, kv_heads=2, tied=False, scaling=scaling)
    assert_same_greedy(reference, config, params, random_tokens(7, 200))


@pytest.mark.parametrize("scaling", SCALINGS)
def test_rope_frequencies_are_theirs_to_the_last_bit(scaling: str) -> None:
    """Where PyTorch's power is not the nearest float32, one bit of it may differ: 1.7 % of 3,105 (theta, head size) pairs tried."""
    ours, theirs = SCALINGS[scaling]
    names = {"rope_scaling": "scaling", "rope_low_frequency": "low_frequency", "rope_high_frequency": "high_frequency",
             "rope_factor": "factor", "rope_original_length": "original_length"}
    equal = []
    for theta in (10000.0, 500000.0):
        for head_size in (64, 80, 128):
            rope = {"rope_type": "default", **(theirs or {}), "rope_theta": theta}
            config = transformers.LlamaConfig(head_dim=head_size, max_position_embeddings=LENGTH, rope_parameters=rope)
            want = transformers.models.llama.modeling_llama.LlamaRotaryEmbedding(config).inv_freq.numpy()
            got, _ = rope_frequencies(head_size, theta=theta, **{names[key]: value for key, value in ours.items()})
            np.testing.assert_array_max_ulp(got, want, maxulp=2)
            equal.append(got == want)
    assert np.mean(np.concatenate(equal)) > 0.95


def test_ntk_frequencies_are_those_of_a_raised_theta() -> None:
    """transformers has only the dynamic form; static NTK is plain rotation with theta · factor^(H/(H-2))."""
    H = WIDTH // HEADS
    reference, config, params = llama(8, kv_heads=2, tied=False, scaling="none", theta=10000.0 * 4.0 ** (H / (H - 2)))
    ntk = ModelConfig(**{**vars(config), "rope_theta": 10000.0, "rope_scaling": "ntk", "rope_factor": 4.0})
    assert_same_logits(reference, ntk, params, random_tokens(8, 512))


@pytest.mark.parametrize("seed", range(3))
def test_gpt2_logits(seed: int) -> None:
    reference, config, params = gpt2(seed)
    assert_same_logits(reference, config, params, random_tokens(seed, 48))


def test_gpt2_logits_at_long_positions() -> None:
    reference, config, params = gpt2(5)
    assert_same_logits(reference, config, params, random_tokens(5, LENGTH))


def test_gpt2_greedy_text_through_the_cache() -> None:
    reference, config, params = gpt2(7)
    assert_same_greedy(reference, config, params, random_tokens(7, 40))
