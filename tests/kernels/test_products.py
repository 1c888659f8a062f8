"""Equal titles have equal scores wherever they stand, or a tie would not go to the smaller index."""

from __future__ import annotations

import pytest
import torch
from frontrow.kernels.candidate_scoring import candidate_scoring
from frontrow.kernels.catalogue_search import CHUNK, catalogue_search
from frontrow.kernels.products import inner_products

WIDTHS = (1, 3, 7, 8, 31, 50, 64, 100, 128, 256)


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("titles", [1, 5, 17, 100, 999, 1682, 4097])
def test_products_of_equal_titles_are_the_same_bits(width: int, titles: int) -> None:
    torch.manual_seed(width * titles)
    for members in (1, 2, 3, 7, 8, 64):
        table, vectors = torch.randn(titles, width), torch.randn(members, width)
        same = [0, titles // 3, titles // 2, max(titles - 2, 0), titles - 1]
        table[same] = table[0].clone()
        found = inner_products(vectors, table)
        assert bool((found[:, same] == found[:, :1]).all())
        torch.testing.assert_close(found.double(), vectors.double() @ table.double().T, rtol=1e-4, atol=1e-4)


def test_a_tie_across_chunks_goes_to_the_smaller_index() -> None:
    torch.manual_seed(5)
    vector, table = torch.randn(64), torch.randn(CHUNK + 1, 64) * 0.1
    table[5] = table[CHUNK] = vector
    assert catalogue_search(torch.stack([vector, vector * 0.5]), table, 2)[0].tolist() == [[5, CHUNK]] * 2


@pytest.mark.parametrize("width", WIDTHS)
def test_a_tie_among_candidates_goes_to_the_smaller_index(width: int) -> None:
    torch.manual_seed(width)
    table = torch.randn(1000, width) * 0.1
    same = [0, 333, 500, 998, 999]
    table[same] = torch.randn(width)
    members = table[0] * torch.rand(8, 1) + 0.01 * table[0]
    candidates = torch.stack([torch.randperm(1000) for _ in members])
    assert candidate_scoring(members, table, candidates, 5)[0].tolist() == [same] * 8
    offsets = torch.arange(0, 8001, 1000)
    ragged = candidate_scoring(members, table, candidates.flatten(), 5, offsets=offsets)
    assert ragged[0].tolist() == [same] * 8


def test_a_few_candidates_of_many_titles_do_not_multiply_all(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: torch.Tensor) -> torch.Tensor:
        raise AssertionError("everything was multiplied")

    monkeypatch.setattr("frontrow.kernels.candidate_scoring.inner_products", refuse)
    table, members = torch.randn(10_000, 4), torch.randn(300, 4)
    candidates = torch.randint(10_000, (300, 50))
    padded = candidate_scoring(members, table, candidates, 3)
    ragged = candidate_scoring(members, table, candidates.flatten(), 3, offsets=torch.arange(0, 15_001, 50))
    assert torch.equal(padded[0], ragged[0])
