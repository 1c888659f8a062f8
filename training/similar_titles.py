"""Titles that are alike by their metadata alone: what a title that nobody has played yet can be compared by.

Shape letters: N titles, V values of all metadata fields together.
"""

from __future__ import annotations

import numpy as np

from ..foundation.embedding import table_size
from ..foundation.schema import FIRST
from .data import Dataset

NEIGHBOURS = 20


def metadata_vectors(data: Dataset) -> np.ndarray:
    """float32 [N, V]: a block per title field, of length 1 with the title's values in it, zeros where it has none."""
    blocks = []
    for f in data.schema.title_fields:
        ids = data.title_ids[FIRST:, slice(*data.schema.title_spans[f.name])]
        block = np.zeros((len(ids), table_size(f, data.sizes)), np.float32)
        np.put_along_axis(block, ids, 1.0, axis=1)
        block = block[:, FIRST:]
        blocks.append(block / np.maximum(np.linalg.norm(block, axis=1, keepdims=True), 1.0))
    return np.concatenate(blocks, axis=1) if blocks else np.zeros((len(data.titles), 1), np.float32)


def mixing_weights(data: Dataset, wanted: np.ndarray, known: np.ndarray) -> np.ndarray:
    """How to mix `known` titles int64 [N'] into each of `wanted` int64 [W]: float32 [W, N'], each line of sum 1, of the
    20 most alike by the cosine of their metadata; alike ones share equally, and all do where nothing is known."""
    vectors = metadata_vectors(data)
    vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    alike = np.maximum(vectors[wanted] @ vectors[known].T, 0.0)
    if len(known) > NEIGHBOURS:
        # Of equally alike titles all count: which of them has the smaller id says nothing.
        least = np.partition(alike, -NEIGHBOURS, axis=1)[:, -NEIGHBOURS, None]
        alike = np.where(alike >= least, alike, 0.0)
    total = alike.sum(1, keepdims=True)
    return np.where(total > 0, alike / np.maximum(total, 1e-12), 1.0 / max(1, len(known))).astype(np.float32)
