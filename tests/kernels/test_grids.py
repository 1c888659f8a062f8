"""No launch goes beyond what a grid can be, whatever grows: 2³¹ − 1 programs along the first axis, 65,535 along others.

The launchers run on tensors without memory, and the kernels are replaced by something that notes its grid.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from frontrow.kernels.candidate_scoring import candidate_scoring_triton
from frontrow.kernels.catalogue_search import catalogue_search_triton
from frontrow.kernels.event_embedding import event_embedding_triton
from frontrow.kernels.event_embedding_backward import event_embedding_backward_triton
from frontrow.kernels.top_keys import top_keys_triton
from torch import Tensor

pytest.importorskip("triton", reason="the kernels need Triton")
FIRST, OTHERS = 2**31 - 1, 65535
KERNELS = {
    "candidate_scoring": ["_score_tile"],
    "top_keys": ["_best_of_tile", "_best_of_row"],
    "catalogue_search": ["_block_maxima", "_score_blocks"],
    "event_embedding": ["_project"],
    "event_embedding_backward": ["_sum_rows", "_project_back"],
    "segment_sum": ["_sum_tile", "_join_tiles"],
}


def none(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def scoring(lists: int, longest: int, k: int, ragged: bool = False) -> Any:
    titles, candidates = none(1000, 8), none(lists, longest, dtype=torch.int64)
    if not ragged:
        return candidate_scoring_triton(none(lists, 8), titles, candidates, k, longest)
    offsets, of = none(lists + 1, dtype=torch.int64), none(lists, dtype=torch.int64)
    return candidate_scoring_triton(none(3, 8), titles, candidates.view(-1), k, longest, offsets, of)


def embedding(events: int, rows: int, model: int, slots: int = 1) -> Any:
    tables, spans = [none(rows, 32), none(300, 16)], [(0, slots), (slots, slots + 6)]
    weight, ids = none(model, 48), none(events, slots + 6, dtype=torch.int32)
    event_embedding_triton(ids, tables, spans, weight, none(model))
    event_embedding_backward_triton(none(events, model), ids, tables, spans, weight)
    event_embedding_backward_triton(none(events, model), ids, tables, spans, weight, sparse=True)


LAUNCHES: dict[str, Callable[[], Any]] = {
    "a list of 100 million": lambda: scoring(1, 100_000_000, 100),
    "a list of 400 million, all kept": lambda: scoring(1, 400_000_000, 1000),
    "a million lists": lambda: scoring(1_000_000, 1000, 100),
    "a million ragged lists": lambda: scoring(1_000_000, 100, 20, ragged=True),
    "a row of a billion keys": lambda: top_keys_triton(none(1, 1_000_000_000, dtype=torch.int64), 1000),
    "a million rows of keys": lambda: top_keys_triton(none(1_000_000, 8000, dtype=torch.int64), 100),
    "as many titles as an index can name": lambda: catalogue_search_triton(none(9, 128), none(FIRST, 128), 1000),
    "a million queries": lambda: catalogue_search_triton(none(1_000_000, 128), none(100_000, 128), 100),
    "a hundred million events": lambda: embedding(100_000_000, 10_000_000, 512),
    "a hundred million events, averaged": lambda: embedding(100_000_000, 10_000_000, 512, slots=8),
    "a wide model": lambda: embedding(1000, 10_000_000, 65_536),
}


@pytest.fixture
def grids(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, tuple[int, ...]]]:
    """(kernel, grid) of each launch; nothing is launched."""
    seen = []
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda _: False)  # it does not know such tensors

    class Noted:
        def __init__(self, name: str) -> None:
            self.name = name

        def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
            seen.append((self.name, grid))
            return lambda *_, **__: None

    for module, names in KERNELS.items():
        for name in names:
            monkeypatch.setattr(sys.modules[f"frontrow.kernels.{module}"], name, Noted(name))
    return seen


@pytest.mark.parametrize("launch", LAUNCHES)
def test_every_grid_can_be_launched(launch: str, grids: list[tuple[str, tuple[int, ...]]]) -> None:
    LAUNCHES[launch]()
    assert grids
    for kernel, (first, *others) in grids:
        assert first <= FIRST, kernel
        assert all(size <= OTHERS for size in others), kernel


def test_every_kernel_is_watched(grids: list[tuple[str, tuple[int, ...]]]) -> None:
    for launch in LAUNCHES.values():
        launch()
    assert {kernel for kernel, _ in grids} == {name for names in KERNELS.values() for name in names}
