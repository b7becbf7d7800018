"""Techniques without a transformer: bags of words, a linear classifier, n-gram language models,
word vectors.

The names below are imported when they are first used. Only training of the classifier and of
vectors imports jax.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llm_jax.classic.bag_of_words import BagOfWords, learn_bag_of_words
    from llm_jax.classic.bm25 import Bm25, learn_bm25
    from llm_jax.classic.hashing import hash_words
    from llm_jax.classic.kneser_ney import KENLM_FALLBACK, KneserNey, train_kneser_ney
    from llm_jax.classic.linear import LinearModel, train_linear
    from llm_jax.classic.scores import classification_scores
    from llm_jax.classic.text_classifier import TextClassifier, train_text_classifier
    from llm_jax.classic.tf_idf import TfIdf, tfidf
    from llm_jax.classic.vocabulary import Vocabulary, VocabularyRule
    from llm_jax.classic.word2vec.config import Word2VecConfig
    from llm_jax.classic.word2vec.phrases import PhraseRule
    from llm_jax.classic.word2vec.train import train_word2vec
    from llm_jax.classic.word2vec.vectors import Vectors
    from llm_jax.classic.words import WordRule, sklearn_rule

_MODULES = {
    "BagOfWords": "llm_jax.classic.bag_of_words",
    "Bm25": "llm_jax.classic.bm25",
    "classification_scores": "llm_jax.classic.scores",
    "hash_words": "llm_jax.classic.hashing",
    "KENLM_FALLBACK": "llm_jax.classic.kneser_ney",
    "KneserNey": "llm_jax.classic.kneser_ney",
    "learn_bag_of_words": "llm_jax.classic.bag_of_words",
    "learn_bm25": "llm_jax.classic.bm25",
    "LinearModel": "llm_jax.classic.linear",
    "PhraseRule": "llm_jax.classic.word2vec.phrases",
    "sklearn_rule": "llm_jax.classic.words",
    "TextClassifier": "llm_jax.classic.text_classifier",
    "TfIdf": "llm_jax.classic.tf_idf",
    "tfidf": "llm_jax.classic.tf_idf",
    "train_kneser_ney": "llm_jax.classic.kneser_ney",
    "train_linear": "llm_jax.classic.linear",
    "train_word2vec": "llm_jax.classic.word2vec.train",
    "train_text_classifier": "llm_jax.classic.text_classifier",
    "Vectors": "llm_jax.classic.word2vec.vectors",
    "Vocabulary": "llm_jax.classic.vocabulary",
    "VocabularyRule": "llm_jax.classic.vocabulary",
    "Word2VecConfig": "llm_jax.classic.word2vec.config",
    "WordRule": "llm_jax.classic.words",
}
__all__ = [
    "KENLM_FALLBACK",
    "BagOfWords",
    "Bm25",
    "KneserNey",
    "LinearModel",
    "PhraseRule",
    "TextClassifier",
    "TfIdf",
    "Vectors",
    "Vocabulary",
    "VocabularyRule",
    "Word2VecConfig",
    "WordRule",
    "classification_scores",
    "hash_words",
    "learn_bag_of_words",
    "learn_bm25",
    "sklearn_rule",
    "tfidf",
    "train_kneser_ney",
    "train_linear",
    "train_text_classifier",
    "train_word2vec",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'llm_jax.classic' has no attribute {name!r}")
    value = getattr(importlib.import_module(_MODULES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
