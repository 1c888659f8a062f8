"""linear_cross_entropy: softmax over all titles and its loss, without the logits of all tokens in memory at once.

On a GPU with liger-kernel installed its fused kernels (Hsu et al., "Liger Kernel", 2024); elsewhere torch, a chunk of
tokens at a time with the logits computed again for the gradient where they would be large.
Shape letters: T tokens, D vector width, N titles.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import torch
import torch.nn.functional as nnf
from torch import Tensor
from torch.utils.checkpoint import checkpoint

liger: Any = None
with suppress(ImportError):  # not installed, or without the Triton that it needs
    from liger_kernel.transformers.functional import (  # pyright: ignore[reportMissingImports]
        liger_fused_linear_cross_entropy as liger,
    )

LOGITS = 1 << 26  # of a chunk: 256 MB in float32
IGNORED = -100


def linear_cross_entropy(hidden: Tensor, title_vectors: Tensor, target: Tensor) -> Tensor:
    """Σ over tokens of −log softmax(hidden · title_vectors)[target], as float32 scalar; differentiable in both.

    hidden: [T, D]. title_vectors: [N, D], of the same dtype. target: int64 [T] in [0, N); tokens with a negative target
    add nothing, if their hidden vectors are finite. Logits have the dtype of the inputs, their softmax is float32.
    Raises ValueError if shapes or dtypes do not fit, and on CPU for a target of N or more.
    """
    if hidden.dim() != 2 or title_vectors.dim() != 2 or hidden.shape[1] != title_vectors.shape[1]:
        raise ValueError(
            f"hidden {tuple(hidden.shape)} and title_vectors {tuple(title_vectors.shape)} do not fit; expected [T, D] "
            "and [N, D]"
        )
    if target.shape != hidden.shape[:1]:
        raise ValueError(f"target is {tuple(target.shape)}; expected ({len(hidden)},)")
    if hidden.dtype != title_vectors.dtype and not torch.is_autocast_enabled(hidden.device.type):
        raise ValueError(f"hidden is {hidden.dtype} and title_vectors {title_vectors.dtype}; expected one dtype")
    if target.dtype != torch.int64:
        raise ValueError(f"target is {target.dtype}; expected int64")
    known = target.device.type == "cpu" and not torch.compiler.is_compiling()
    if known and target.numel() and int(target.max()) >= len(title_vectors):
        raise ValueError(f"target {int(target.max())} is outside [0, {len(title_vectors)})")
    target = torch.where(target < 0, IGNORED, target)
    if liger is not None and hidden.is_cuda and len(hidden):
        vectors = title_vectors.to(hidden.dtype)
        return liger(hidden, vectors, target, ignore_index=IGNORED, reduction="sum", accum_dtype=torch.float32).float()
    return linear_cross_entropy_reference(hidden, title_vectors, target)


def linear_cross_entropy_reference(hidden: Tensor, title_vectors: Tensor, target: Tensor) -> Tensor:
    """The op in torch on any device; target is IGNORED where it counts for nothing."""
    return _by_chunks(_chunk, hidden, title_vectors, target)


def weighted_linear_cross_entropy(hidden: Tensor, title_vectors: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """Σ over tokens and their K targets of −weight · log softmax(hidden · title_vectors)[target], as float32 scalar.

    hidden, title_vectors: as in `linear_cross_entropy`. targets: int64 [T, K] in [0, N). weights: float32 [T, K].
    """
    if not targets.shape == weights.shape == (len(hidden), *targets.shape[1:2]):
        raise ValueError(
            f"targets {tuple(targets.shape)} and weights {tuple(weights.shape)} do not fit; expected [{len(hidden)}, K]"
        )
    return _by_chunks(_weighted_chunk, hidden, title_vectors, targets, weights)


def _by_chunks(chunk: Callable[..., Tensor], hidden: Tensor, title_vectors: Tensor, *of_tokens: Tensor) -> Tensor:
    """The sum of `chunk` over pieces of the tokens whose logits are few enough; logits of several are not kept."""
    step = max(1, LOGITS // max(1, len(title_vectors)))
    if len(hidden) <= step:
        return chunk(hidden, title_vectors, *of_tokens)
    parts = zip(*(tensor.split(step) for tensor in (hidden, *of_tokens)), strict=True)
    losses = [checkpoint(chunk, h, title_vectors, *rest, use_reentrant=False) for h, *rest in parts]
    return torch.stack(losses).sum()


def _weighted_chunk(hidden: Tensor, title_vectors: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    likely = (hidden @ title_vectors.T).float().log_softmax(1)
    return -(weights * likely.gather(1, targets)).sum()


def _chunk(hidden: Tensor, title_vectors: Tensor, target: Tensor) -> Tensor:
    logits = (hidden @ title_vectors.T).float()
    return nnf.cross_entropy(logits, target, reduction="sum", ignore_index=IGNORED)
