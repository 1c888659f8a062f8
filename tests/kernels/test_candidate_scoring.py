"""candidate_scoring's public function against loops in float64: ties, padding, values that are no numbers, refusals."""

from __future__ import annotations

import math

import pytest
import torch
from frontrow.kernels.candidate_scoring import candidate_scoring
from torch import Tensor
from truth import ranked

INF, NAN = math.inf, math.nan


def check(members: Tensor, titles: Tensor, candidates: Tensor, k: int) -> None:
    indices, scores = candidate_scoring(members, titles, candidates, k)
    wanted_indices, wanted_scores = ranked(members, titles, candidates.tolist(), k)
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


LISTS = [[3, 1, -1, 0], [], [2, 2, 4]]
RAGGED = {"candidates": torch.tensor([3, 1, -1, 0, 2, 2, 4]), "offsets": torch.tensor([0, 4, 4, 7])}


@pytest.mark.parametrize("filler", [0, 100], ids=["dense", "gather"])
@pytest.mark.parametrize("longest", [None, 4, 9])
def test_ragged_lists_with_members_of_their_own(filler: int, longest: int | None) -> None:
    vectors, titles = torch.randn(2, 8), torch.randn(5 + filler, 8)
    of = torch.tensor([1, 0, 1])
    got = candidate_scoring(vectors, titles, **RAGGED, k=3, members=of, longest=longest)
    wanted = ranked(vectors[of], titles, LISTS, 3)
    assert got[0].tolist() == wanted[0]
    torch.testing.assert_close(got[1].double(), torch.tensor(wanted[1], dtype=torch.float64), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("filler", [0, 300], ids=["dense", "gather"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.int8, torch.float8_e4m3fn])
def test_scales_bias_and_exclusion_with_every_kind_of_table(filler: int, dtype: torch.dtype) -> None:
    titles = (torch.randn(40 + filler, 16) * 20).to(dtype)
    scales, bias = torch.rand(len(titles)), torch.randn(len(titles))
    candidates, exclude = torch.randint(-1, 40, (3, 30)), torch.rand(3, 30) < 0.3
    vectors = torch.randn(3, 16)
    got = candidate_scoring(vectors, titles, candidates, 12, scales=scales, bias=bias, exclude=exclude)
    wanted = ranked(vectors, titles, candidates.tolist(), 12, scales, bias, exclude.tolist())
    assert got[0].tolist() == wanted[0]
    torch.testing.assert_close(got[1].double(), torch.tensor(wanted[1], dtype=torch.float64), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"offsets": torch.tensor([0, 4, 3, 7])}, "must rise from 0 to 7"),
        ({"offsets": torch.tensor([1, 4, 4, 7])}, "must rise from 0 to 7"),
        ({"members": torch.tensor([0, 1, 2])}, r"member 2 is outside \[0, 2\)"),
        ({"members": torch.tensor([0, 1])}, r"members is torch.int64 \(2,\); expected torch.int64 \(3,\)"),
        ({"members": None}, "need `members`"),
        ({"longest": 3}, "longest is 3, but a list has 4 candidates"),
        ({"bias": torch.zeros(4)}, r"bias is torch.float32 \(4,\)"),
        ({"scales": torch.zeros(5, dtype=torch.float64)}, "scales is torch.float64"),
        ({"exclude": torch.zeros(3, dtype=torch.bool)}, "exclude is torch.bool"),
        ({"title_vectors": torch.zeros(5, 8, dtype=torch.int32)}, "title_vectors torch.int32"),
        ({"candidates": torch.zeros(7)}, "candidates are torch.float32; expected int32 or int64"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_arguments_that_do_not_fit_are_named(change: dict[str, Tensor | None], message: str) -> None:
    arguments = {
        "member_vectors": torch.zeros(2, 8), "title_vectors": torch.zeros(5, 8), **RAGGED,
        "members": torch.tensor([1, 0, 1]), "k": 1,
    }  # fmt: skip
    with pytest.raises(ValueError, match=message):
        candidate_scoring(**{**arguments, **change})


def test_torch_sees_through_the_op() -> None:
    vectors, titles, candidates = torch.randn(2, 8), torch.randn(5, 8), torch.tensor([[0, 3, -1], [4, 4, 1]])
    arguments = (vectors, titles, candidates, 2, 3, None, None, None, None, None)
    torch.library.opcheck(torch.ops.frontrow.candidate_scoring.default, arguments)
