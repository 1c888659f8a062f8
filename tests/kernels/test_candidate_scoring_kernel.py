"""candidate_scoring's kernel, under Triton's interpreter on a host without GPU, against loops in float64."""

from __future__ import annotations

import math

import pytest
import torch
from frontrow.kernels import candidate_scoring
from frontrow.kernels.candidate_scoring import candidate_scoring_triton
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from truth import ranked

pytest.importorskip("triton", reason="the kernels need Triton")
ON_GPU = torch.cuda.is_available()
DEVICE = "cuda" if ON_GPU else "cpu"
# Triton's interpreter computes bfloat16 wrongly, so that is left to a GPU.
DTYPES = [torch.float32, torch.float16, torch.int8, torch.float8_e4m3fn] + [torch.bfloat16] * ON_GPU


def check(vectors: Tensor, titles: Tensor, candidates: Tensor, k: int, **more: Tensor | None) -> None:
    offsets, members, exclude = more.get("offsets"), more.get("members"), more.get("exclude")
    if offsets is None:
        lists, excluded = candidates.tolist(), None if exclude is None else exclude.tolist()
    else:
        parts = offsets.diff().tolist()
        lists = [part.tolist() for part in candidates.split(parts)]
        excluded = None if exclude is None else [part.tolist() for part in exclude.split(parts)]
    lists = [[title if title < len(titles) else -1 for title in listed] for listed in lists]
    of = vectors if members is None else vectors[members]
    wanted = ranked(of, titles, lists, k, more.get("scales"), more.get("bias"), excluded)
    longest = max(map(len, lists), default=0)
    on_device = {name: None if value is None else value.to(DEVICE) for name, value in more.items()}
    inputs = (vectors.to(DEVICE), titles.to(DEVICE), candidates.to(DEVICE))
    indices, scores = (t.cpu() for t in candidate_scoring_triton(*inputs, k, longest, **on_device))
    assert (indices.dtype, scores.dtype) == (torch.int64, torch.float32)
    assert indices.tolist() == wanted[0]
    torch.testing.assert_close(scores.double(), torch.tensor(wanted[1], dtype=torch.float64).view(len(lists), k),
                               rtol=1e-4, atol=1e-4)  # fmt: skip


@pytest.mark.parametrize("k", [1, 3, 40, 129, 300, 2000])
@pytest.mark.parametrize("longest", [1, 31, 128, 129, 1100])
def test_lists_of_every_length_with_every_k(longest: int, k: int) -> None:
    titles = torch.randn(2000, 24)
    check(torch.randn(2, 24), titles, torch.stack([torch.randperm(2000)[:longest] for _ in range(2)]), k)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("width", [8, 40, 256])
def test_every_kind_of_table_with_scales_bias_and_exclusion(dtype: torch.dtype, width: int) -> None:
    titles = (torch.randn(60, width) * 10).to(dtype)
    candidates = torch.randint(-1, 60, (3, 70))
    more = {"scales": torch.rand(60), "bias": torch.randn(60), "exclude": torch.rand(3, 70) < 0.4}
    check(torch.randn(3, width), titles, candidates, 20, **more)


def test_many_lists_take_wide_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(candidate_scoring, "PROGRAMS", 1)
    check(torch.randn(3, 8), torch.randn(500, 8), torch.randint(0, 500, (3, 220)), 5)


@pytest.mark.parametrize("longest", [40, 200])
def test_ragged_lists_with_members_of_their_own(longest: int) -> None:
    lengths = torch.tensor([longest, 0, 1, longest // 2, 0])
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
    candidates = torch.randint(-1, 90, (int(offsets[-1]),))
    exclude = torch.rand(len(candidates)) < 0.2
    members = torch.tensor([1, 0, 0, 1, 1])
    check(torch.randn(2, 16), torch.randn(90, 16), candidates, 7, offsets=offsets, members=members, exclude=exclude)


def test_ties_nan_infinities_and_indices_beyond_the_catalogue() -> None:
    titles = torch.tensor([math.nan, math.inf, -math.inf, -5.0, 0.0, -0.0, 1.0, 1.0])[:, None]
    beyond = [8, 2**31 - 1]
    check(torch.ones(1, 1), titles, torch.tensor([[7, 0, 2, -1, 5, 6, 1, *beyond, 4, 3, 7]], dtype=torch.int32), 12)
    check(torch.ones(1, 1), titles, torch.tensor([[*beyond, 2**40, -1, 0, 2]]), 2)
    check(torch.ones(1, 1), titles, torch.tensor([[4, 5] * 100]), 150)


def test_nothing_to_score() -> None:
    empty = torch.empty(2, 0, dtype=torch.int64)
    check(torch.randn(2, 8), torch.randn(5, 8), empty, 3)
    check(torch.randn(0, 8), torch.randn(5, 8), empty[:0], 3)
    check(torch.randn(1, 8), torch.randn(0, 8), torch.tensor([[-1, -1]]), 3)
    check(torch.randn(1, 8), torch.randn(3, 8), torch.tensor([[1, 2]]), 2, exclude=torch.ones(1, 2, dtype=torch.bool))


def test_inputs_that_are_not_contiguous() -> None:
    wide = torch.randn(60, 2)
    more = {"scales": wide[:, 0], "bias": wide[:, 1]}
    check(torch.randn(8, 3).T, torch.randn(60, 16)[:, ::2], torch.randint(0, 60, (40, 3)).T, 9, **more)
    offsets, members = torch.tensor([[0, 9], [3, 9], [7, 9]])[:, 0], torch.tensor([[1, 9], [0, 9]])[:, 0]
    check(torch.randn(2, 8), torch.randn(60, 8), torch.arange(7), 3, offsets=offsets, members=members)


def test_members_and_offsets_that_do_not_exist_are_not_read() -> None:
    titles, vectors, candidates = torch.randn(9, 4).to(DEVICE), torch.randn(2, 4).to(DEVICE), torch.arange(6).to(DEVICE)
    offsets, members = torch.tensor([0, 3, 6]).to(DEVICE), torch.tensor([5, 1]).to(DEVICE)
    indices, _ = candidate_scoring_triton(vectors, titles, candidates, 3, 3, offsets, members)
    assert indices[0].tolist() == [-1, -1, -1]
    assert sorted(indices[1].tolist()) == [3, 4, 5]
    indices, _ = candidate_scoring_triton(vectors, titles, candidates, 3, 3, torch.tensor([0, 3, 900]).to(DEVICE))
    assert sorted(indices[1].tolist()) == [3, 4, 5]


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_any_list(data: st.DataObject) -> None:
    titles = torch.tensor(data.draw(st.lists(st.integers(-3, 3), min_size=1, max_size=20)), dtype=torch.float32)
    listed = data.draw(st.lists(st.integers(-1, len(titles) - 1), max_size=80))
    k = data.draw(st.integers(1, 90))
    check(torch.ones(1, 1), titles[:, None], torch.tensor([listed], dtype=torch.int64).view(1, -1), k)


@pytest.mark.skipif(not ON_GPU, reason="5 GB of titles on a GPU")
def test_addresses_beyond_two_to_the_31() -> None:
    titles = torch.zeros(9_000_000, 256, dtype=torch.bfloat16, device=DEVICE)  # 2.3e9 elements
    titles[-1], titles[0] = 2.0, 1.0
    candidates = torch.tensor([[0, 8_999_999]], device=DEVICE)
    members = torch.ones(1, 256, dtype=torch.bfloat16, device=DEVICE)
    indices, scores = candidate_scoring_triton(members, titles, candidates, 2, 2)
    assert (indices.tolist(), scores.tolist()) == ([[8_999_999, 0]], [[512.0, 256.0]])
