"""Fields of every kind for the tests of event_embedding, and its definition and gradients in float64."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from frontrow.kernels.event_embedding import event_embedding_reference
from torch import Tensor

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
# Triton's interpreter is silently wrong in bfloat16: that one runs where there is a GPU.
DTYPES = [torch.float32, torch.float16, *([torch.bfloat16] if DEVICE.type == "cuda" else [])]
ROUNDING = {torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 2e-2}
# (rows, width, columns of ids)
ONE = [(9, 16, 1)]
MIXED = [
    (1000, 160, 1), (24, 64, 1), (7, 8, 3), (5, 32, 1), (2, 8, 1), (30, 3, 1), (20, 16, 6), (12, 40, 1), (600, 20, 4),
    (1, 8, 1),
]  # fmt: skip
LARGE_ALONE = [(513, 24, 1)]


@dataclass
class Case:
    ids: Tensor
    tables: list[Tensor]
    spans: list[tuple[int, int]]
    weight: Tensor
    bias: Tensor
    grad: Tensor

    def truth(self) -> tuple[Tensor, list[Tensor]]:
        """The result and the gradients of tables, weight and bias, in float64 on the CPU."""
        leaves = [t.double().cpu().requires_grad_() for t in (*self.tables, self.weight, self.bias)]
        *tables, weight, bias = leaves
        out = event_embedding_reference(self.ids.cpu(), tables, self.spans, weight, bias)
        return out.detach(), list(torch.autograd.grad((out * self.grad.double().cpu()).sum(), leaves))


def make(
    fields: list[tuple[int, int, int]],
    events: int,
    model: int,
    dtype: torch.dtype = torch.float32,
    ids: str = "uniform",
) -> Case:
    """ids: uniform, last (all the last row) or zipf."""
    columns = []
    for rows, _, slots in fields:
        if ids == "uniform":
            columns.append(torch.randint(0, rows, (events, slots)))
        elif ids == "last":
            columns.append(torch.full((events, slots), rows - 1))
        else:
            columns.append((rows ** torch.rand(events, slots) - 1).long().clamp(max=rows - 1))
    encoded = torch.cat(columns, dim=1).int()
    encoded[events // 2 : events // 2 + 1] = 0  # an event that has nothing
    stops = torch.tensor([s for _, _, s in fields]).cumsum(0).tolist()
    width = sum(w for _, w, _ in fields)
    parts = [torch.randn(rows, w) for rows, w, _ in fields]
    weight, bias, grad = torch.randn(model, width) * width**-0.5, torch.randn(model), torch.randn(events, model)
    *parts, weight, bias, grad = (t.to(DEVICE, dtype) for t in (*parts, weight, bias, grad))
    spans = [(stop - slots, stop) for stop, (_, _, slots) in zip(stops, fields, strict=True)]
    return Case(encoded.to(DEVICE), parts, spans, weight, bias, grad)


def assert_close(found: Tensor, wanted: Tensor, dtype: torch.dtype) -> None:
    """Equal up to the dtype's rounding, measured against the largest value."""
    assert found.shape == wanted.shape
    if wanted.numel():
        error = (found.double().cpu() - wanted).abs().max()
        assert error <= ROUNDING[dtype] * max(1.0, float(wanted.abs().max())), float(error)
