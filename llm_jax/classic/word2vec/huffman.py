"""Huffman codes of words: the binary tree of hierarchical softmax."""

from __future__ import annotations

import heapq

import numpy as np

from llm_jax.ops.word2vec import Paths
from llm_jax.types import DataError


def huffman_paths(counts: np.ndarray) -> Paths:
    """The path of each word from the root of a Huffman tree.

    Frequent words have short paths. Nodes are numbered from the leaves: V - 2 is the root.

    Args:
        counts: [V], occurrences of each word.

    Raises:
        DataError: fewer than two words.
    """
    size = len(counts)
    if size < 2:
        raise DataError(f"the vocabulary has {size} word; hierarchical softmax needs at least 2")
    parents, signs = _merge(counts)
    node_paths: list[tuple[list[int], list[int]]] = [([], [])] * (2 * size - 1)
    # Parents have higher numbers than their children.
    for node in range(2 * size - 3, -1, -1):
        parent = parents[node]
        nodes, turns = node_paths[parent]
        node_paths[node] = ([*nodes, parent - size], [*turns, signs[node]])
    longest = max(len(turns) for _, turns in node_paths[:size])
    all_nodes = np.zeros((size, longest), np.int32)
    all_signs = np.zeros((size, longest), np.int8)
    for word, (nodes, turns) in enumerate(node_paths[:size]):
        all_nodes[word, : len(nodes)] = nodes
        all_signs[word, : len(turns)] = turns
    return Paths(all_nodes, all_signs)


def _merge(counts: np.ndarray) -> tuple[list[int], list[int]]:
    """Parent of each node, and the turn that leads to it: 1 is left, -1 right."""
    size = len(counts)
    heap = [(int(count), word) for word, count in enumerate(counts)]
    heapq.heapify(heap)
    parents = [0] * (2 * size - 1)
    signs = [0] * (2 * size - 1)
    for parent in range(size, 2 * size - 1):
        first, left = heapq.heappop(heap)
        second, right = heapq.heappop(heap)
        parents[left] = parents[right] = parent
        signs[left] = 1
        signs[right] = -1
        heapq.heappush(heap, (first + second, parent))
    return parents, signs
