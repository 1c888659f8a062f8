"""Packed keys and their top-k kernel, under Triton's interpreter on a host without GPU."""

from __future__ import annotations

import math

import pytest
import torch
from frontrow.kernels.top_keys import NONE, pack_keys, top_keys, top_keys_reference, top_keys_triton, unpack_keys

pytest.importorskip("triton", reason="the kernels need Triton")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
INF, NAN = math.inf, math.nan


def test_keys_sort_by_score_then_by_smaller_index() -> None:
    scores = torch.tensor([-INF, NAN, -3.5, -1e-45, -0.0, 0.0, 1e-45, 2.0, 2.0, INF])
    indices = torch.tensor([0, 1, 2, 3, 5, 4, 6, 8, 7, 2**31 - 1])
    order = pack_keys(scores, indices).argsort(descending=True)
    assert indices[order[:-2]].tolist() == [2**31 - 1, 7, 8, 6, 4, 5, 3, 2]
    assert pack_keys(scores, indices)[:2].tolist() == [NONE, NONE]


def test_unpacking_gives_back_what_was_packed() -> None:
    scores, indices = torch.randn(1000) * 1e3, torch.randint(0, 2**31 - 1, (1000,))
    assert all(map(torch.equal, unpack_keys(pack_keys(scores, indices)), (indices, scores)))
    nothing = unpack_keys(torch.tensor([NONE]))
    assert [t.item() for t in nothing] == [-1, -INF]


@pytest.mark.parametrize(
    ("rows", "count", "k"),
    [
        *((1, 1, 1), (1, 1, 5), (3, 5, 9), (2, 100, 100), (1, 2048, 64), (1, 3000, 100), (1, 2100, 1000), (1, 2500, 1)),
        *((2, 0, 3), (0, 5, 3), (1, 3000, 1500), (1, 2049, 4096)),
    ],
)
def test_the_kernel_equals_the_definition(rows: int, count: int, k: int) -> None:
    scores = torch.randn(rows, count).round(decimals=1)  # many ties
    scores[scores > 2.5], scores[scores < -2.5] = NAN, INF
    indices = torch.stack([torch.randperm(count + 7)[:count] - 3 for _ in range(rows)]) if rows else scores.long()
    keys = pack_keys(scores, indices).to(DEVICE)
    for got in (top_keys_triton(keys, k), top_keys(keys, k)):
        assert [(t.dtype, tuple(t.shape)) for t in got] == [(torch.int64, (rows, k)), (torch.float32, (rows, k))]
        assert all(map(torch.equal, got, top_keys_reference(keys, k)))
