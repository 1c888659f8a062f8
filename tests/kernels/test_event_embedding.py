"""event_embedding against loops in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from frontrow.kernels.event_embedding import event_embedding
from torch import Tensor

SPANS = [(0, 1), (1, 4), (4, 5)]
SIZES, WIDTHS, M = [7, 5, 3], [4, 3, 2], 6


def naive(ids: Tensor, tables: list[Tensor], weight: Tensor, bias: Tensor | None) -> Tensor:
    out = torch.zeros(len(ids), len(weight), dtype=torch.float64)
    for t in range(len(ids)):
        parts = []
        for table, (start, stop) in zip(tables, SPANS, strict=True):
            rows = [int(i) for i in ids[t, start:stop]]
            if stop - start > 1:
                rows = [i for i in rows if i]
            total = torch.zeros(table.shape[1], dtype=torch.float64)
            for i in rows:
                total += table[i].double() / len(rows)
            parts.append(total)
        out[t] = weight.double() @ torch.cat(parts)
    return out if bias is None else out + bias.double()


def make(events: int) -> tuple[Tensor, list[Tensor], Tensor, Tensor]:
    columns = [torch.randint(0, size, (events, stop - start)) for size, (start, stop) in zip(SIZES, SPANS, strict=True)]
    tables = [torch.randn(v, e) for v, e in zip(SIZES, WIDTHS, strict=True)]
    return torch.cat(columns, dim=1).int(), tables, torch.randn(M, sum(WIDTHS)), torch.randn(M)


@pytest.mark.parametrize("events", [1, 2, 31, 100], ids="T={}".format)
@pytest.mark.parametrize("with_bias", [False, True], ids=["no_bias", "bias"])
def test_equals_naive(events: int, with_bias: bool) -> None:
    ids, tables, weight, bias = make(events)
    found = event_embedding(ids, tables, SPANS, weight, bias if with_bias else None)
    torch.testing.assert_close(
        found.double(), naive(ids, tables, weight, bias if with_bias else None), rtol=0, atol=1e-5
    )


def test_no_events_give_no_rows() -> None:
    ids, tables, weight, bias = make(0)
    assert event_embedding(ids, tables, SPANS, weight, bias).shape == (0, M)


def test_field_without_values_is_zeros_but_a_single_column_uses_row_0() -> None:
    _, tables, _, _ = make(1)
    ids = torch.zeros(1, 5, dtype=torch.int32)
    found = event_embedding(ids, tables, SPANS, torch.eye(sum(WIDTHS)))[0]
    expected = torch.cat([tables[0][0], torch.zeros(WIDTHS[1]), tables[2][0]])
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_absent_slots_do_not_dilute_the_mean() -> None:
    _, tables, _, _ = make(1)
    ids = torch.tensor([[1, 0, 3, 0, 1]], dtype=torch.int32)
    found = event_embedding(ids, tables, SPANS, torch.eye(sum(WIDTHS)))[0, 4:7]
    torch.testing.assert_close(found, tables[1][3])


def test_gradients_equal_those_of_naive() -> None:
    ids, tables, weight, bias = make(9)
    leaves = [t.requires_grad_() for t in (*tables, weight, bias)]
    direction = torch.randn(9, M)
    found = torch.autograd.grad((event_embedding(ids, tables, SPANS, weight, bias) * direction).sum(), leaves)
    # The loop's in-place sums are differentiable too.
    wanted = torch.autograd.grad((naive(ids, tables, weight, bias) * direction).sum(), leaves)
    for f, w in zip(found, wanted, strict=True):
        torch.testing.assert_close(f, w, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [(0, 7, "id 7 in columns \\[0, 1\\)"), (2, 5, "id 5 in columns \\[1, 4\\)"), (4, -1, "id -1 in columns")],
)
def test_id_outside_its_table_is_refused(column: int, value: int, message: str) -> None:
    ids, tables, weight, bias = make(3)
    ids[1, column] = value
    with pytest.raises(ValueError, match=message):
        event_embedding(ids, tables, SPANS, weight, bias)


def test_misfits_are_refused() -> None:
    ids, tables, weight, bias = make(3)
    with pytest.raises(ValueError, match="do not fit 2 spans"):
        event_embedding(ids, tables, SPANS[:2], weight, bias)
    with pytest.raises(ValueError, match="weight \\[M, 9\\]"):
        event_embedding(ids, tables, SPANS, weight[:, :-1], bias)
    with pytest.raises(ValueError, match="reach beyond the 4 columns"):
        event_embedding(ids[:, :4], tables, SPANS, weight, bias)


def test_other_misfits_are_refused() -> None:
    ids, tables, weight, bias = make(3)
    with pytest.raises(ValueError, match="span \\(4, 4\\) is empty"):
        event_embedding(ids, tables, [*SPANS[:2], (4, 4)], weight, bias)
    with pytest.raises(ValueError, match="bias \\(5,\\) does not fit"):
        event_embedding(ids, tables, SPANS, weight, bias[:-1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ids": torch.zeros(3, 5)}, r"ids are torch\.float32; expected int32"),
        ({"ids": torch.zeros(3, 5, dtype=torch.int64)}, r"ids are torch\.int64; expected int32, as ids\.int\(\)"),
        ({"ids": torch.zeros(5, dtype=torch.int32)}, r"ids is \(5,\); ids are \[T, C\]"),
        ({"ids": torch.zeros(3, 5, dtype=torch.int32, device="meta")}, "table 0 is on cpu, ids are on meta; move"),
        ({"tables": [torch.zeros(7, 4).half(), torch.zeros(5, 3), torch.zeros(3, 2)]},
         r"tables are torch\.float16, torch\.float32 .* the same for all tables"),
        ({"tables": [torch.zeros(7, 4), torch.zeros(5), torch.zeros(3, 2)]}, r"table 1 is \(5,\); .* tables \[V, E\]"),
        ({"tables": [torch.zeros(7, 4), torch.zeros(5, 3), torch.zeros(3, 2, device="meta")]}, "table 2 is on meta"),
        ({"weight": torch.zeros(M, 9, dtype=torch.int8)}, r"weight torch\.int8; expected one of float32, bfloat16"),
        ({"weight": torch.zeros(M)}, r"weight is \(6,\)"),
        ({"bias": torch.zeros(M).bfloat16()}, r"bias is torch\.bfloat16 and weight torch\.float32; expected one dtype"),
        ({"bias": torch.zeros(M, device="meta")}, "bias is on meta"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)  # fmt: skip
def test_a_kind_that_does_not_fit_is_named_with_what_would(change: dict[str, Any], message: str) -> None:
    ids, tables, weight, bias = make(3)
    arguments = {"ids": ids, "tables": tables, "spans": SPANS, "weight": weight, "bias": bias, **change}
    with pytest.raises(ValueError, match=message):
        event_embedding(**arguments)


def test_torch_library_knows_the_op() -> None:
    ids, tables, weight, bias = make(5)
    leaves = [t.requires_grad_() for t in (*tables, weight, bias)]
    columns = [c for span in SPANS for c in span]
    args = (ids, leaves[:3], columns, weight, bias, False)
    torch.library.opcheck(torch.ops.frontrow.event_embedding.default, args)
    backward = (torch.randn(5, M), ids, [t.detach() for t in tables], columns, weight.detach(), False)
    torch.library.opcheck(torch.ops.frontrow.event_embedding_backward.default, backward)


def test_compile_and_export_see_through() -> None:
    ids, tables, weight, bias = make(5)
    leaves = [t.requires_grad_() for t in (*tables, weight, bias)]

    def embed(ids: Tensor) -> Tensor:
        return event_embedding(ids, tables, SPANS, weight, bias)

    compiled = torch.compile(embed, fullgraph=True, backend="aot_eager")
    wanted = embed(ids)
    torch.testing.assert_close(compiled(ids), wanted)
    found = torch.autograd.grad(compiled(ids).sum(), leaves)
    for f, w in zip(found, torch.autograd.grad(wanted.sum(), leaves), strict=True):
        torch.testing.assert_close(f, w)

    class Embed(torch.nn.Module):
        def forward(self, ids: Tensor) -> Tensor:
            return embed(ids)

    for leaf in leaves:
        leaf.requires_grad_(False)
    exported = torch.export.export(Embed(), (ids,), dynamic_shapes={"ids": {0: torch.export.Dim.DYNAMIC}})
    assert "frontrow.event_embedding" in str(exported.graph)
    other = make(9)[0]
    torch.testing.assert_close(exported.module()(other), embed(other))


def test_autocast_gives_its_dtype_and_the_tables_their_own_gradients() -> None:
    ids, tables, weight, bias = make(7)
    leaves = [t.requires_grad_() for t in (*tables, weight, bias)]
    with torch.autocast("cpu", torch.bfloat16):
        found = event_embedding(ids, tables, SPANS, weight, bias)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.double(), naive(ids, tables, weight, bias), rtol=0.05, atol=0.05)
    grads = torch.autograd.grad(found.float().sum(), leaves)
    assert {g.dtype for g in grads} == {torch.float32}


def test_sparse_gradients_of_large_tables_sum_to_the_dense_ones() -> None:
    tables = [torch.randn(600, 4), torch.randn(5, 3), torch.randn(700, 2)]
    leaves = [t.requires_grad_() for t in (*tables, torch.randn(M, 9))]
    ids = torch.cat([torch.randint(0, v, (50, s)) for v, s in ((600, 1), (5, 3), (700, 2))], dim=1).int()
    spans = [(0, 1), (1, 4), (4, 6)]
    sparse, dense = (
        torch.autograd.grad(event_embedding(ids, tables, spans, leaves[3], sparse=s).square().sum(), leaves)
        for s in (True, False)
    )
    assert [g.layout for g in sparse] == [torch.sparse_coo, torch.strided, torch.sparse_coo, torch.strided]
    assert sparse[2]._nnz() == 100
    for s, d in zip(sparse, dense, strict=True):
        torch.testing.assert_close(s.to_dense(), d)
