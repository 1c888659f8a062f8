"""folded_embedding gives what event_embedding gives, from weights that stay as they are."""

from __future__ import annotations

import pytest
import torch
from fields import LARGE_ALONE, MIXED, ONE, assert_close, make
from frontrow.kernels.event_embedding import event_embedding
from frontrow.kernels.folded_embedding import fold

AVERAGED = [(30, 8, 4), (5, 8, 2)]


@pytest.mark.parametrize("fields", [ONE, MIXED, LARGE_ALONE, AVERAGED], ids=["one", "mixed", "large", "averaged"])
@pytest.mark.parametrize("events", [0, 1, 7, 129])
@pytest.mark.parametrize("budget", [0, 50_000, 1 << 30])
def test_equals_event_embedding_in_float64(fields: list[tuple[int, int, int]], events: int, budget: int) -> None:
    case = make(fields, events, 24)
    ids, tables = case.ids.cpu(), [t.cpu() for t in case.tables]
    before = [t.clone() for t in tables]
    wanted = case.truth()[0]
    folded = fold(tables, case.spans, case.weight.cpu(), case.bias.cpu(), budget)
    assert_close(folded(ids), wanted, torch.float32)
    assert all(torch.equal(a, b) for a, b in zip(tables, before, strict=True))
    without = fold(tables, case.spans, case.weight.cpu(), budget=budget)
    assert_close(without(ids), wanted - case.bias.double().cpu(), torch.float32)


def test_the_budget_keeps_large_tables_as_they_are() -> None:
    case = make(MIXED, 3, 24)
    args = [t.cpu() for t in case.tables], case.spans, case.weight.cpu()
    assert len(fold(*args).kept) == 0
    assert [len(t) for t in fold(*args, budget=50_000).kept] == [1000, 600]


def test_columns_of_no_field_are_left_alone_and_fields_may_stand_in_any_order() -> None:
    tables = [torch.randn(5, 4), torch.randn(6, 3)]
    weight = torch.randn(8, 7)
    ids = torch.tensor([[99, 1, -7, 2, 4], [99, 5, -7, 0, 0]], dtype=torch.int32)
    args = (tables, [(3, 5), (1, 2)], weight)
    torch.testing.assert_close(fold(*args)(ids), event_embedding(ids, *args))


def test_autocast_does_not_round_what_is_kept() -> None:
    case = make(MIXED, 9, 24)
    args = [t.cpu() for t in case.tables], case.spans, case.weight.cpu(), case.bias.cpu()
    with torch.autocast("cpu", torch.bfloat16):
        folded = fold(*args)
    assert folded.rows.dtype == torch.float32
    assert torch.equal(folded.rows, fold(*args).rows)


@pytest.mark.parametrize("value", [9, -1])
def test_an_id_outside_its_table_is_refused(value: int) -> None:
    case = make(ONE, 3, 24)
    ids = case.ids.cpu()
    ids[1, 0] = value
    with pytest.raises(ValueError, match=f"id {value} in columns \\[0, 1\\) is outside \\[0, 9\\)"):
        fold([t.cpu() for t in case.tables], case.spans, case.weight.cpu())(ids)
