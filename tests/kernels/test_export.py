"""torch.export and torch.compile see through the ranking ops, with sizes that may change."""

from __future__ import annotations

from typing import Any

import torch
from frontrow.kernels.candidate_scoring import candidate_scoring
from frontrow.kernels.catalogue_search import catalogue_search
from torch import Tensor, nn


class Rank(nn.Module):
    def forward(self, vectors: Tensor, titles: Tensor, candidates: Tensor) -> tuple[Tensor, ...]:
        return *candidate_scoring(vectors, titles, candidates, 3), *catalogue_search(vectors, titles, 3)


def inputs(members: int, titles: int) -> tuple[Tensor, Tensor, Tensor]:
    return torch.randn(members, 8), torch.randn(titles, 8), torch.randint(0, titles, (members, 6))


def test_an_exported_program_takes_other_sizes() -> None:
    some: Any = torch.export.Dim("members", min=2, max=100)
    shapes = {"vectors": {0: some}, "titles": None, "candidates": {0: some}}
    program = torch.export.export(Rank(), inputs(4, 50), dynamic_shapes=shapes)
    more = inputs(7, 50)
    assert all(map(torch.equal, program.module()(*more), Rank()(*more)))


def test_compiled_without_a_break() -> None:
    ranked = torch.compile(Rank(), fullgraph=True, backend="aot_eager", dynamic=True)
    for members, titles in ((4, 50), (7, 90)):
        given = inputs(members, titles)
        assert all(map(torch.equal, ranked(*given), Rank()(*given)))
