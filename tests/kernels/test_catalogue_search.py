"""catalogue_search, its torch path and its kernels (interpreted without a GPU), against loops in float64."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from frontrow.kernels import catalogue_search as module
from frontrow.kernels.catalogue_search import (
    catalogue_search,
    catalogue_search_reference,
    catalogue_search_triton,
    exclusion_bits,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from truth import ranked

pytest.importorskip("triton", reason="the kernels need Triton")
ON_GPU = torch.cuda.is_available()
DEVICE = "cuda" if ON_GPU else "cpu"
# Triton's interpreter computes bfloat16 wrongly, and int8 and float8 titles are multiplied in it.
DTYPES = [torch.float32, torch.float16] + [torch.bfloat16, torch.int8, torch.float8_e4m3fn] * ON_GPU
Search = Callable[..., tuple[Tensor, Tensor]]
PATHS = pytest.mark.parametrize(
    "search", [catalogue_search_reference, catalogue_search_triton], ids=["torch", "kernels"]
)


def check(search: Search, queries: Tensor, titles: Tensor, k: int, exclude: Tensor | None = None, **more: Any) -> None:
    """`exclude` is bool [Q or 1, N]."""
    everything = [list(range(len(titles)))] * len(queries)
    excluded = None if exclude is None else exclude.expand(len(queries), -1).tolist()
    rounded = queries.to(titles.dtype if titles.dtype.itemsize > 1 else torch.bfloat16)
    wanted = ranked(rounded, titles, everything, k, more.get("scales"), more.get("bias"), excluded)
    more = {name: value.to(DEVICE) for name, value in more.items()}
    if exclude is not None:
        more["exclude"] = exclusion_bits(exclude).to(DEVICE)
    indices, scores = (t.cpu() for t in search(queries.to(DEVICE), titles.to(DEVICE), k, **more))
    assert (indices.dtype, scores.dtype) == (torch.int64, torch.float32)
    assert indices.tolist() == wanted[0]
    expected = torch.tensor(wanted[1], dtype=torch.float64).view(len(queries), k)
    torch.testing.assert_close(scores.double(), expected, rtol=1e-4, atol=1e-4)


@PATHS
@pytest.mark.parametrize(
    ("asked", "count", "width", "k"),
    [(1, 1, 8, 1), (3, 5, 16, 9), (2, 300, 32, 100), (17, 300, 40, 7), (65, 129, 8, 3), (1, 1100, 8, 1030)],
)
def test_every_shape(search: Search, asked: int, count: int, width: int, k: int) -> None:
    check(search, torch.randn(asked, width), torch.randn(count, width), k)


@PATHS
@pytest.mark.parametrize("shared", [True, False])
def test_bias_scales_and_exclusion(search: Search, shared: bool) -> None:
    exclude = torch.rand(1 if shared else 5, 300) < 0.5
    more = {"scales": torch.rand(300), "bias": torch.randn(300)}
    check(search, torch.randn(5, 16), torch.randn(300, 16), 20, exclude, **more)


@PATHS
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_kind_of_table(search: Search, dtype: torch.dtype) -> None:
    check(search, torch.randn(3, 32), (torch.randn(200, 32) * 8).to(dtype), 10)


@PATHS
def test_ties_nan_and_infinities(search: Search) -> None:
    scores = [math.nan, math.inf, -math.inf, 1.0, 1.0, 0.0, -0.0] + [1.0] * 300
    titles = torch.tensor(scores)[:, None]
    if ON_GPU or search is catalogue_search_reference:  # a matrix product of the interpreter warns of NaN
        check(search, torch.ones(1, 1), titles, 4)
        check(search, torch.ones(1, 1), titles, 303)
    check(search, torch.ones(2, 1), titles[3:], 150)


@PATHS
def test_all_excluded_and_nothing_there(search: Search) -> None:
    check(search, torch.randn(2, 8), torch.randn(200, 8), 3, torch.ones(1, 200, dtype=torch.bool))
    check(search, torch.randn(2, 8), torch.randn(0, 8), 3)
    check(search, torch.randn(0, 8), torch.randn(4, 8), 3)


@PATHS
@settings(max_examples=25, deadline=None)
@given(st.data())
def test_any_catalogue(search: Search, data: st.DataObject) -> None:
    titles = torch.tensor(data.draw(st.lists(st.integers(-3, 3), min_size=1, max_size=300)), dtype=torch.float32)
    exclude = torch.tensor([[data.draw(st.booleans()) for _ in range(min(40, len(titles)))]])
    exclude = torch.nn.functional.pad(exclude, (0, len(titles) - exclude.shape[1]))
    check(search, torch.ones(1, 1), titles[:, None], data.draw(st.integers(1, 40)), exclude)


def test_a_catalogue_of_several_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHUNK", 64)
    exclude = torch.rand(2, 300) < 0.5
    check(catalogue_search_reference, torch.randn(2, 8), torch.randn(300, 8), 100, exclude, bias=torch.randn(300))


def test_more_queries_than_are_taken_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "KEYS", 1)
    check(catalogue_search_triton, torch.randn(20, 8), torch.randn(90, 8), 4, torch.rand(20, 90) < 0.5)
    monkeypatch.setattr(module, "AT_ONCE", 2)
    for rows in (1, 5):
        check(catalogue_search_reference, torch.randn(5, 8), torch.randn(90, 8), 4, torch.rand(rows, 90) < 0.5)


@PATHS
def test_inputs_that_are_not_contiguous(search: Search) -> None:
    wide = torch.rand(90, 2)
    check(search, torch.randn(8, 3).T, torch.randn(90, 16)[:, ::2], 4, scales=wide[:, 0], bias=wide[:, 1])


@PATHS
def test_autocast_does_not_round(search: Search) -> None:
    with torch.autocast(DEVICE, torch.bfloat16):
        check(search, torch.randn(3, 8), torch.randn(90, 8), 4)


def test_many_blocks_per_program(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PROGRAMS", 2)
    check(catalogue_search_triton, torch.randn(3, 8), torch.randn(1000, 8), 30)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"queries": torch.zeros(2, 7)}, "do not fit"),
        ({"k": 0}, "k is 0"),
        ({"title_vectors": torch.zeros(40, 8, dtype=torch.int32)}, "title_vectors torch.int32"),
        ({"bias": torch.zeros(41)}, r"bias is torch.float32 \(41,\); expected float32 \(40,\)"),
        ({"scales": torch.zeros(40, dtype=torch.int8)}, "scales is torch.int8"),
        ({"exclude": torch.zeros(2, 1, dtype=torch.int32)}, r"expected int32 \(2, 2\) or \(1, 2\)"),
        ({"exclude": torch.zeros(2, 2, dtype=torch.bool)}, "exclude is torch.bool"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_arguments_that_do_not_fit_are_named(change: dict[str, Any], message: str) -> None:
    arguments = {"queries": torch.zeros(2, 8), "title_vectors": torch.zeros(40, 8), "k": 3, **change}
    with pytest.raises(ValueError, match=message):
        catalogue_search(**arguments)


def test_torch_sees_through_the_op() -> None:
    arguments = (torch.randn(2, 8), torch.randn(40, 8), 3, None, torch.randn(40), None)
    torch.library.opcheck(torch.ops.frontrow.catalogue_search.default, arguments)
    search = torch.compile(catalogue_search, fullgraph=True, backend="aot_eager")
    assert all(map(torch.equal, search(*arguments[:3]), catalogue_search(*arguments[:3])))
