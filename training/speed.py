"""How fast training goes, and what share of the device's arithmetic it uses.

Shape letters: T tokens, L tokens of a history, E width of the concatenated fields, M d_model, D vector width, N titles.
"""

from __future__ import annotations

import time

import torch
from torch import Tensor, nn

from ..foundation.model import FoundationModel


def training_flops(model: FoundationModel, offsets: Tensor) -> float:
    """Floating-point operations of forward and backward pass over ragged histories (offsets int64 [B+1]): two per
    multiply-add, and the backward pass twice the forward one, as in Chowdhery et al., "PaLM" (2022), appendix B; the
    causal half of attention counted, lookups, norms and softmax not."""
    lengths = offsets.diff().double()
    tokens = float(lengths.sum())
    modules = (model.events.projection, model.transformer, model.heads)
    linear = sum(m.weight.numel() for part in modules for m in part.modules() if isinstance(m, nn.Linear))
    titles = len(model.titles.known) * model.schema.id_field.width
    attention = len(model.transformer.blocks) * model.config.d_model * float((lengths * (lengths + 1)).sum())
    return 6 * (tokens * (linear + titles) + attention)


@torch.no_grad()
def matmul_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Floating-point operations per second of a large matrix product on this device, the best of several, now: what
    utilisation is a share of. On a host that others share it may be less than training gets later."""
    size = 8192 if device.type == "cuda" else 1024
    generator = torch.Generator(device).manual_seed(0)  # its own: training draws from torch's
    a = torch.randn(size, size, device=device, dtype=dtype, generator=generator)
    best = float("inf")
    for _ in range(8):
        _wait(device)
        started = time.perf_counter()
        torch.mm(a, a)
        _wait(device)
        best = min(best, time.perf_counter() - started)
    return 2 * size**3 / best


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
