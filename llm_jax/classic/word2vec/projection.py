"""Vectors in the plane, for a picture of them."""

from __future__ import annotations

import numpy as np

from llm_jax.types import ConfigError, DataError


def principal_plane(values: np.ndarray) -> np.ndarray:
    """float64 [n, 2]: the two principal components of vectors, which keep most of their variance.

    The sign of each is that of its largest value.

    Args:
        values: [n, D] of at least three vectors and two dimensions.

    Raises:
        DataError: there are fewer.
    """
    if len(values) < 3 or values.shape[1] < 2:
        raise DataError(
            f"there are {len(values)} vectors of {values.shape[1]} dimensions; a picture needs at"
            " least 3 of 2, so give more words"
        )
    centered = values.astype(np.float64) - values.mean(axis=0, dtype=np.float64)
    left, scales, _ = np.linalg.svd(centered, full_matrices=False)
    plane = left[:, :2] * scales[:2]
    largest = np.abs(plane).argmax(axis=0)
    signs = np.sign(plane[largest, np.arange(2)])
    return plane * np.where(signs == 0, 1, signs)


def tsne_plane(values: np.ndarray, seed: int = 0) -> np.ndarray:
    """float64 [n, 2]: t-SNE of scikit-learn by cosine, which keeps neighbours near.

    Args:
        values: [n, D] of at least three vectors.
        seed: from 0 to 2**32 - 1.

    Raises:
        ConfigError: scikit-learn is not installed.
        DataError: there are fewer than three vectors.
    """
    if len(values) < 3:
        raise DataError(f"there are {len(values)} vectors; t-SNE needs at least 3, so give more")
    try:
        from sklearn.manifold import TSNE
    except ImportError as error:
        raise ConfigError(
            "t-SNE needs scikit-learn, which is not installed; pip install 'llm_jax[vectors]'"
        ) from error
    perplexity = min(30.0, (len(values) - 1) / 3)
    fitted = TSNE(metric="cosine", init="pca", perplexity=perplexity, random_state=seed)
    return np.asarray(fitted.fit_transform(values.astype(np.float64)), np.float64)
