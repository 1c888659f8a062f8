"""event_embedding's Triton kernels against float64: Triton's interpreter runs them where there is no GPU."""

from __future__ import annotations

import gc
import weakref
from functools import cache
from typing import Any

import pytest
import torch
from fields import DEVICE, DTYPES, LARGE_ALONE, MIXED, ONE, assert_close, make
from frontrow.kernels import event_embedding_backward, field_groups
from frontrow.kernels.event_embedding import event_embedding_triton
from frontrow.kernels.event_embedding_backward import (
    event_embedding_backward_reference,
    event_embedding_backward_triton,
    large,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

pytest.importorskip("triton")
FIELDS = {"one": ONE, "mixed": MIXED, "large": LARGE_ALONE}


@pytest.fixture(autouse=True)
def _poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a kernel should write and does not stays NaN."""

    new_empty = Tensor.new_empty

    def poisoned(self: Tensor, *shape: Any, **options: Any) -> Tensor:
        made = new_empty(self, *shape, **options)
        return made.fill_(float("nan")) if made.is_floating_point() else made

    monkeypatch.setattr(Tensor, "new_empty", poisoned)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("fields", FIELDS)
@pytest.mark.parametrize("events", [0, 1, 7, 129])
def test_forward(fields: str, events: int, dtype: torch.dtype) -> None:
    case = make(FIELDS[fields], events, 70, dtype)
    found = event_embedding_triton(case.ids, case.tables, case.spans, case.weight, case.bias)
    assert found.dtype == dtype
    assert_close(found, case.truth()[0], dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("fields", "events", "ids"),
    [("one", 0, "uniform"), ("mixed", 1, "uniform"), ("mixed", 7, "last"), ("mixed", 300, "zipf"),
     ("large", 700, "zipf"), ("large", 700, "last"), ("one", 300, "uniform")],
)  # fmt: skip
def test_gradients(fields: str, events: int, ids: str, dtype: torch.dtype) -> None:
    case = make(FIELDS[fields], events, 40, dtype, ids)
    found = event_embedding_backward_triton(case.grad, case.ids, case.tables, case.spans, case.weight)
    for f, w, of in zip(found, case.truth()[1], (*case.tables, case.weight, case.bias), strict=True):
        assert f.dtype == of.dtype
        assert f.is_contiguous()
        assert_close(f, w, dtype)


def test_row_sparse_gradients_are_the_dense_ones() -> None:
    case = make(MIXED, 150, 24, ids="zipf")
    args = (case.grad, case.ids, case.tables, case.spans, case.weight)
    dense, sparse = event_embedding_backward_triton(*args), event_embedding_backward_triton(*args, sparse=True)
    count = len(case.tables)
    for f, rows in zip(large(case.tables), sparse[count + 2 :], strict=True):
        listed = rows[sparse[f].abs().sum(1) > 0]
        assert len(listed) == len(listed.unique()), "each row that occurs stands at one place"
        assert torch.equal(torch.zeros_like(case.tables[f]).index_add_(0, rows, sparse[f]), dense[f])
        sparse[f] = dense[f]
    assert all(torch.equal(s, d) for s, d in zip(sparse[: count + 2], dense, strict=True))


def test_the_same_bits_from_run_to_run() -> None:
    case = make(MIXED, 200, 24, ids="zipf")
    args = (case.grad, case.ids, case.tables, case.spans, case.weight)
    first, second = (event_embedding_backward_triton(*args) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_tables_of_one_dtype_are_cast_to_the_weights() -> None:
    """As under autocast: float32 tables, products of the tensor cores."""
    case, half = make(MIXED, 33, 24), make(MIXED, 33, 24, torch.float16)
    found = event_embedding_triton(case.ids, case.tables, case.spans, case.weight.half(), case.bias.half())
    assert found.dtype == torch.float16
    assert_close(found, case.truth()[0], torch.float16)
    grads = event_embedding_backward_triton(half.grad, case.ids, case.tables, case.spans, case.weight.half())
    case.grad = half.grad
    for f, w, of in zip(grads, case.truth()[1], [*case.tables, *[half.weight] * 2], strict=True):
        assert f.dtype == of.dtype
        assert_close(f, w, torch.float16)


def test_an_id_outside_its_table_counts_as_zeros() -> None:
    case = make(MIXED, 5, 24)
    zeros = event_embedding_triton(case.ids, [t * (f > 0) for f, t in enumerate(case.tables)], case.spans, case.weight)
    for outside in (1000, -1, 2**31 - 1):
        case.ids[:, 0] = outside
        assert torch.equal(event_embedding_triton(case.ids, case.tables, case.spans, case.weight), zeros)


OUTSIDE = (99, -1, -2, -(2**31), 2**31 - 1)


@pytest.mark.parametrize("outside", OUTSIDE)
@pytest.mark.parametrize(("rows", "sparse"), [(6, False), (600, False), (600, True)])
def test_an_id_outside_its_table_is_not_counted_in_a_mean(rows: int, sparse: bool, outside: int) -> None:
    outside = 2 * rows if outside == OUTSIDE[0] else outside
    ids = torch.tensor([[1, outside]], dtype=torch.int32, device=DEVICE)
    table, weight, grad = (torch.randn(n, 8, device=DEVICE) for n in (rows, 8, 1))
    args = ids, [table], [(0, 2)], weight
    torch.testing.assert_close(event_embedding_triton(*args), table[1:2] @ weight.T)
    found, of_weight, of_bias, *at = event_embedding_backward_triton(grad, *args, sparse)
    if sparse:
        found = torch.zeros_like(table).index_add_(0, at[0], found)
    wanted = torch.zeros_like(table)
    wanted[1] = grad[0] @ weight
    torch.testing.assert_close(found, wanted)
    torch.testing.assert_close(of_weight, grad.T @ table[1:2])
    torch.testing.assert_close(of_bias, grad[0])


def test_gradients_with_ids_outside_their_tables_are_those_without() -> None:
    """In averaged fields as with 0; in others as if the event had no row of the field."""
    case = make(MIXED, 90, 24)
    kept = case.ids.clone()
    for f, (start, stop) in enumerate(case.spans):
        for i, outside in enumerate((len(case.tables[f]), *OUTSIDE[1:])):
            at = (torch.arange(0, 3, device=DEVICE) + 3 * i, start + (f + i) % (stop - start))
            case.ids[at] = outside
            kept[at] = 0
    args = case.tables, case.spans, case.weight
    found = event_embedding_backward_triton(case.grad, case.ids, *args)
    for f, (table, (start, stop)) in enumerate(zip(case.tables, case.spans, strict=True)):
        alone = event_embedding_backward_triton(case.grad, kept, *args)[f]
        if stop - start == 1:  # what the ids that were replaced gave to row 0
            lost = (case.ids[:, start] < 0) | (case.ids[:, start] >= len(table))
            of = case.weight.split([t.shape[1] for t in case.tables], dim=1)[f]
            alone[0] -= (case.grad * lost[:, None]).sum(0) @ of
        torch.testing.assert_close(found[f], alone, rtol=1e-4, atol=1e-4)


@pytest.mark.filterwarnings("ignore:invalid value")  # of the interpreter
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_number_that_is_none_reaches_the_events_that_have_it_and_no_others(value: float) -> None:
    case = make(MIXED, 70, 24)
    case.ids[:, [1, 7]] = case.ids[:, [1, 7]].clamp(max=4)
    case.ids[3, 0], case.ids[30, 1] = 999, 23
    case.tables[0][999] = case.tables[1][23] = case.tables[6][5] = value
    case.tables[2][0] = case.tables[5][29] = value  # of an averaged field never read, and of no event's id
    truth, of = case.truth()
    found = event_embedding_triton(case.ids, case.tables, case.spans, case.weight, case.bias)
    assert 0 < int(truth.isfinite().sum()) < truth.numel()
    assert torch.equal(found.isfinite().cpu(), truth.isfinite())
    grads = event_embedding_backward_triton(case.grad, case.ids, case.tables, case.spans, case.weight)
    for f, w in zip(grads, of, strict=True):
        assert not (f.isfinite().cpu() & ~w.isfinite()).any(), "a gradient may be NaN for no reason, never the reverse"


def test_tables_need_not_be_contiguous_or_aligned() -> None:
    case = make(ONE, 9, 24)
    wanted = event_embedding_triton(case.ids, case.tables, case.spans, case.weight)
    shifted = torch.cat([torch.zeros(1, device=DEVICE), case.tables[0].flatten()])[1:].view_as(case.tables[0])
    for table in (case.tables[0].T.contiguous().T, shifted):
        assert torch.equal(event_embedding_triton(case.ids, [table], case.spans, case.weight), wanted)


@pytest.mark.parametrize("capturing", [True, False])
def test_what_a_captured_graph_reads_outlives_the_caches(capturing: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    case = make([(600, 16, 1), (20, 8, 3)], 5, 16)
    monkeypatch.setattr(field_groups, "_captured", {})
    forward, backward = (case.tables, case.spans, case.weight), (case.ids, case.tables, case.spans, case.weight)
    used: list[weakref.ref[Tensor]] = []

    def noted(make: Any) -> Any:
        @cache
        def made(*args: Any) -> Any:
            found = make(*args)
            used.append(weakref.ref(getattr(found, "meta", found)))
            return found

        return made

    groups, rows = (noted(f.__wrapped__) for f in (field_groups._groups, event_embedding_backward._known_rows))
    monkeypatch.setattr(field_groups, "_groups", groups)
    monkeypatch.setattr(event_embedding_backward, "_known_rows", rows)
    event_embedding_triton(case.ids, *forward)
    event_embedding_backward_triton(case.grad, *backward)
    monkeypatch.setattr(Tensor, "is_cuda", True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: capturing)
    for _ in range(2):  # once is enough to keep it
        event_embedding_triton(case.ids, *forward)
        event_embedding_backward_triton(case.grad, *backward)
    groups.cache_clear()
    rows.cache_clear()
    gc.collect()
    assert len(used) == 4, "of the forward, of the gathers of the backward, and for fields of 1 and of 3 columns"
    assert all((known() is not None) == capturing for known in used)


@pytest.mark.parametrize("sparse", [False, True])
def test_a_model_of_no_columns_has_gradients_of_zeros(sparse: bool) -> None:
    case = make(MIXED, 5, 0)
    args = (case.grad, case.ids, case.tables, case.spans, case.weight, sparse)
    found, wanted = event_embedding_backward_triton(*args), event_embedding_backward_reference(*args)
    assert [(f.shape, f.dtype) for f in found] == [(w.shape, w.dtype) for w in wanted]
    assert not any(f.any() for f in found)


@settings(max_examples=10, deadline=None)
@given(
    fields=st.lists(
        st.tuples(st.sampled_from([1, 2, 17, 520]), st.sampled_from([1, 8, 24, 72]), st.integers(1, 3)),
        min_size=1,
        max_size=5,
    ),
    events=st.integers(0, 70),
    model=st.integers(1, 40),
)
def test_any_fields(fields: list[tuple[int, int, int]], events: int, model: int) -> None:
    case = make(fields, events, model)
    out, grads = case.truth()
    found = event_embedding_triton(case.ids, case.tables, case.spans, case.weight, case.bias)
    assert_close(found, out, torch.float32)
    backward = event_embedding_backward_triton(case.grad, case.ids, case.tables, case.spans, case.weight)
    for f, w in zip(backward, grads, strict=True):
        assert_close(f, w, torch.float32)
