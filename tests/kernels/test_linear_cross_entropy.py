"""The title loss in chunks against the whole, in float64; and that training goes through it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from frontrow.foundation import heads
from frontrow.foundation.model import FoundationModel
from frontrow.kernels import linear_cross_entropy as module
from frontrow.kernels.linear_cross_entropy import linear_cross_entropy
from frontrow.training.batches import training_batches
from frontrow.training.data import Dataset

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.mark.parametrize("chunk", [1, 35, 1 << 26])
@pytest.mark.parametrize("tokens", [0, 1, 20])
def test_value_and_gradients_in_chunks_of_any_size(tokens: int, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LOGITS", chunk)
    hidden = torch.randn(tokens, 8, dtype=torch.float64)
    titles = torch.randn(7, 8, dtype=torch.float64)
    target = torch.randint(-2, 7, (tokens,))
    wanted_inputs = [hidden.clone().requires_grad_(), titles.clone().requires_grad_()]
    log = (wanted_inputs[0] @ wanted_inputs[1].T).log_softmax(1)
    wanted = -sum((log[i, t] for i, t in enumerate(target.tolist()) if t >= 0), torch.zeros((), dtype=torch.float64))
    inputs = [t.float().to(DEVICE).requires_grad_() for t in (hidden, titles)]
    found = linear_cross_entropy(*inputs, target.to(DEVICE))
    assert (found.dtype, found.shape) == (torch.float32, ())
    torch.testing.assert_close(found.cpu().double(), wanted.detach(), rtol=1e-5, atol=1e-5)
    if tokens:
        for one, other in zip(
            torch.autograd.grad(found, inputs),
            torch.autograd.grad(wanted + 0 * sum(t.sum() for t in wanted_inputs), wanted_inputs),
            strict=True,
        ):
            torch.testing.assert_close(one.cpu().double(), other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("shapes", "target", "message"),
    [
        (((3, 4), (5, 6)), [0, 0, 0], "do not fit"),
        (((3, 4), (5, 4)), [0, 0], r"target is \(2,\); expected \(3,\)"),
        (((3, 4), (5, 4)), [0, 5, 0], r"target 5 is outside \[0, 5\)"),
    ],
)
def test_what_does_not_fit_is_refused(shapes: tuple[Any, Any], target: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        linear_cross_entropy(torch.zeros(shapes[0]), torch.zeros(shapes[1]), torch.tensor(target))


def test_training_calls_it(tiny_data: Dataset, tiny_model: FoundationModel, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def watched(*inputs: torch.Tensor) -> torch.Tensor:
        seen.append([len(t) for t in inputs])
        return linear_cross_entropy(*inputs)

    monkeypatch.setattr(heads, "linear_cross_entropy", watched)
    batch = next(iter(training_batches(tiny_data, 16, 200, seed=0, epoch=0)))
    tiny_model.losses(batch.tokens, batch.offsets, batch.targets, batch.times)
    assert seen == [[len(batch.tokens), len(tiny_model.title_vectors()), len(batch.tokens)]]
