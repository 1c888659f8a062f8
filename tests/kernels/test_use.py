"""The kernels as a stranger calls them: the page's example, a model's own output, and what does not fit."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from frontrow.kernels.candidate_scoring import candidate_scoring
from frontrow.kernels.catalogue_search import catalogue_search
from frontrow.kernels.folded_embedding import fold
from frontrow.kernels.linear_cross_entropy import linear_cross_entropy

ROOT = Path(__file__).parents[2]
TITLES, LISTS = torch.randn(9, 8), torch.randint(9, (3, 4))


def test_the_pages_example_runs() -> None:
    example = re.search(r"```python\n(.*?)```", (ROOT / "kernels" / "README.md").read_text("utf-8"), re.DOTALL)
    assert example
    names: dict[str, Any] = {}
    exec(example[1], names)
    assert names["hidden"].shape == (3, 128)
    assert names["ids"].min() >= 100, "the first hundred titles are left out"
    assert names["loss"].isfinite()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rankings_take_what_requires_gradients_and_have_none(dtype: torch.dtype) -> None:
    members = torch.randn(3, 8, dtype=dtype, requires_grad=True)
    titles = torch.nn.Parameter(TITLES.to(dtype))
    assert not candidate_scoring(members, titles, LISTS, 2)[1].requires_grad
    assert not catalogue_search(members, titles, 2)[1].requires_grad


def test_the_fold_and_the_loss_compile_as_one_graph() -> None:
    torch._dynamo.reset()
    folded = fold([torch.randn(5, 4)], [(0, 1)], torch.randn(6, 4))
    ids = torch.tensor([[1], [4]], dtype=torch.int32)
    torch.testing.assert_close(torch.compile(lambda i: folded(i), fullgraph=True, backend="eager")(ids), folded(ids))
    inputs = (torch.randn(3, 8), TITLES, torch.tensor([0, -1, 8]))
    loss = torch.compile(linear_cross_entropy, fullgraph=True, backend="eager")(*inputs)
    torch.testing.assert_close(loss, linear_cross_entropy(*inputs))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: candidate_scoring(torch.randn(3, 8), TITLES.to("meta"), LISTS, 2), "on cpu and on meta"),
        (lambda: catalogue_search(torch.randn(3, 8), TITLES, 2, bias=torch.zeros(9, device="meta")), "cpu and on meta"),
        (lambda: fold([torch.randn(5, 4)], [(0, 0)], torch.randn(6, 4)), r"span \(0, 0\) is empty"),
        (lambda: fold([torch.randn(5, 4)], [(0, 1)], torch.randn(4, 6)), "total width 4 do not fit"),
        (
            lambda: fold([torch.randn(5, 4)], [(1, 2)], torch.randn(6, 4))(LISTS[:, :1].int()),
            r"expected int32 \[T, 2\]",
        ),
        (lambda: fold([torch.randn(5, 4)], [(0, 1)], torch.randn(6, 4))(LISTS), "ids are torch.int64"),
        (lambda: linear_cross_entropy(TITLES[:4].bfloat16(), TITLES, LISTS[0]), "expected one dtype"),
        (lambda: linear_cross_entropy(TITLES[:4], TITLES, LISTS[0].int()), "target is torch.int32; expected int64"),
    ],
)
def test_what_does_not_fit_is_named(call: Callable[[], Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        call()
