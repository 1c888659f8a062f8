"""candidate_scoring against a loop in float64; ties, padding and values that are no numbers."""

from __future__ import annotations

import math

import pytest
import torch
from frontrow.kernels.candidate_scoring import candidate_scoring
from torch import Tensor

INF, NAN = math.inf, math.nan


def naive(members: Tensor, titles: Tensor, candidates: Tensor, k: int) -> tuple[list[list[int]], list[list[float]]]:
    indices, scores = [], []
    for member, row in zip(members.double(), candidates.tolist(), strict=True):
        scored = [(float(member @ titles[i].double()), i) for i in row if i >= 0]
        kept = sorted((-s, i) for s, i in scored if not math.isnan(s) and s != -INF)[:k]
        indices.append([i for _, i in kept] + [-1] * (k - len(kept)))
        scores.append([-s for s, _ in kept] + [-INF] * (k - len(kept)))
    return indices, scores


def check(members: Tensor, titles: Tensor, candidates: Tensor, k: int) -> None:
    indices, scores = candidate_scoring(members, titles, candidates, k)
    wanted_indices, wanted_scores = naive(members, titles, candidates, k)
    assert (indices.dtype, scores.dtype) == (torch.int64, torch.float32)
    assert indices.tolist() == wanted_indices
    torch.testing.assert_close(scores.double(), torch.tensor(wanted_scores, dtype=torch.float64), rtol=1e-5, atol=1e-5)


def one(titles: list[float], candidates: list[int], k: int) -> tuple[list[int], list[float]]:
    """One member of vector [1.0]: a title's score is its number."""
    vectors = torch.tensor(titles)[:, None]
    indices, scores = candidate_scoring(torch.ones(1, 1), vectors, torch.tensor([candidates]), k)
    return indices[0].tolist(), scores[0].tolist()


# N large against B·K takes the gathering path, N small the dense one.
@pytest.mark.parametrize("titles", [5, 40, 3000], ids="N={}".format)
@pytest.mark.parametrize(("members", "width", "k"), [(1, 1, 1), (3, 7, 4), (4, 50, 50), (2, 9, 20)])
def test_equals_naive(titles: int, members: int, width: int, k: int) -> None:
    candidates = torch.stack([torch.randperm(max(titles, width))[:width] for _ in range(members)])
    candidates[candidates >= titles] = -1
    check(torch.randn(members, 8), torch.randn(titles, 8), candidates, k)


def test_dense_and_gather_agree() -> None:
    members, titles = torch.randn(4, 8), torch.randn(100, 8)
    candidates = torch.randint(-1, 100, (4, 30))
    dense = candidate_scoring(members, titles, candidates, 30)
    far = torch.cat([titles, torch.zeros(1000, 8)])  # the same candidates in a large catalogue
    gathered = candidate_scoring(members, far, candidates, 30)
    assert torch.equal(dense[0], gathered[0])
    torch.testing.assert_close(dense[1], gathered[1], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("filler", [0, 100], ids=["dense", "gather"])
def test_ties_go_to_the_smaller_index_whatever_the_order_of_candidates(filler: int) -> None:
    titles = [1.0, 2.0, 1.0, 2.0, 1.0] + [0.0] * filler
    assert one(titles, [4, 3, 0, 1, 2], 5) == ([1, 3, 0, 2, 4], [2.0, 2.0, 1.0, 1.0, 1.0])
    assert one(titles, [4, 2, 0], 1) == ([0], [1.0])


@pytest.mark.parametrize("filler", [0, 100], ids=["dense", "gather"])
def test_padding_nan_and_minus_infinity_never_rank(filler: int) -> None:
    titles = [NAN, INF, -INF, -5.0] + [0.0] * filler
    assert one(titles, [0, -1, 2, 3, 1, -1], 6) == ([1, 3, -1, -1, -1, -1], [INF, -5.0, -INF, -INF, -INF, -INF])


def test_k_beyond_the_candidates_is_padded() -> None:
    assert one([1.0, 3.0], [0, 1], 4) == ([1, 0, -1, -1], [3.0, 1.0, -INF, -INF])


def test_no_candidates() -> None:
    indices, scores = candidate_scoring(torch.ones(2, 3), torch.ones(4, 3), torch.empty(2, 0, dtype=torch.int64), 2)
    assert indices.tolist() == [[-1, -1], [-1, -1]]
    assert scores.tolist() == [[-INF, -INF], [-INF, -INF]]


def test_no_members() -> None:
    indices, scores = candidate_scoring(torch.ones(0, 3), torch.ones(4, 3), torch.empty(0, 5, dtype=torch.int64), 2)
    assert indices.shape == scores.shape == (0, 2)


def test_a_candidate_given_twice_is_returned_twice() -> None:
    assert one([1.0, 3.0], [1, 0, 1], 3) == ([1, 1, 0], [3.0, 3.0, 1.0])


def test_half_precision_scores_in_float32() -> None:
    members, titles = torch.randn(2, 64).bfloat16(), torch.randn(30, 64).bfloat16()
    check(members, titles, torch.arange(30).repeat(2, 1), 30)


@pytest.mark.parametrize("index", [-2, 4, 2**40])
def test_index_outside_the_catalogue_is_refused(index: int) -> None:
    with pytest.raises(ValueError, match=f"candidate {index} is outside \\[-1, 4\\)"):
        candidate_scoring(torch.ones(1, 3), torch.ones(4, 3), torch.tensor([[0, index]]), 1)


@pytest.mark.parametrize("k", [0, -1])
def test_k_below_1_is_refused(k: int) -> None:
    with pytest.raises(ValueError, match=f"k is {k}"):
        candidate_scoring(torch.ones(1, 3), torch.ones(4, 3), torch.tensor([[0]]), k)


@pytest.mark.parametrize(
    "shapes", [((2, 3), (4, 5), (2, 1)), ((2, 3), (4, 3), (3, 1)), ((2, 3), (4, 3), (2,))], ids=str
)
def test_shapes_that_do_not_fit_are_refused(shapes: tuple[tuple[int, ...], ...]) -> None:
    members, titles, candidates = shapes
    with pytest.raises(ValueError, match="do not fit"):
        candidate_scoring(torch.ones(members), torch.ones(titles), torch.zeros(candidates, dtype=torch.int64), 1)
