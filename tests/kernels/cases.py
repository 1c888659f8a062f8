"""The launches that are compiled without a GPU: each op at the shapes it is made for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from frontrow.kernels.candidate_scoring import candidate_scoring_triton
from frontrow.kernels.catalogue_search import catalogue_search_triton
from frontrow.kernels.event_embedding import event_embedding_triton
from frontrow.kernels.event_embedding_backward import event_embedding_backward_triton
from frontrow.kernels.top_keys import top_keys_triton

Launch = Callable[[], Any]


def scoring(lists: int, k: int, dtype: torch.dtype, width: int = 256, longest: int = 1000) -> Launch:
    titles = torch.zeros(1024, width).to(dtype)
    scales = torch.zeros(1024) if dtype in (torch.int8, torch.float8_e4m3fn) else None
    candidates = torch.zeros(lists, longest, dtype=torch.int64)
    members = torch.zeros(lists, width, dtype=torch.bfloat16)
    return lambda: candidate_scoring_triton(members, titles, candidates, k, longest, scales=scales)


def page_rows(longest: int, k: int) -> Launch:
    """The rows of a page in one launch: ragged lists that fit one tile."""
    titles, members = torch.zeros(1024, 128, dtype=torch.bfloat16), torch.zeros(8, 128)
    offsets = torch.arange(0, 41) * longest
    candidates, of = torch.zeros(40 * longest, dtype=torch.int64), torch.zeros(40, dtype=torch.int64)
    bias, exclude = torch.zeros(1024), torch.zeros(40 * longest, dtype=torch.bool)
    return lambda: candidate_scoring_triton(
        members, titles, candidates, k, longest, offsets=offsets, members=of, bias=bias, exclude=exclude
    )


def search(asked: int, dtype: torch.dtype, width: int = 128) -> Launch:
    titles, queries = torch.zeros(4096, width).to(dtype), torch.zeros(asked, width, dtype=torch.bfloat16)
    bias, exclude = torch.zeros(4096), torch.zeros(1, 128, dtype=torch.int32)
    scales = bias if dtype == torch.int8 else None
    return lambda: catalogue_search_triton(queries, titles, 100, scales, bias, exclude)


WIDTHS = (256, 64, 32, 32, 32, 32, 16, 16, 16, 16)
ODD = (255, 60, 33, 32, 30, 20, 10, 7, 3, 1)  # brought to multiples of 8 by copies; 488 columns in all


def embedding(
    dtype: torch.dtype, model: int, averaged: bool = False, backward: bool = False,
    widths: Sequence[int] = WIDTHS, of: torch.dtype | None = None, sparse: bool = False,
) -> Launch:  # fmt: skip
    """Ten fields: an entity table of the first width and nine small tables; `averaged`: one of six columns. of: the
    tables' dtype, if it is not the weight's. sparse: of the backward."""
    tables = [torch.zeros(24 if f else 4096, width, dtype=of or dtype) for f, width in enumerate(widths)]
    spans = [(f, f + 1) for f in range(9)] + [(9, 15 if averaged else 10)]
    ids = torch.zeros(300, spans[-1][1], dtype=torch.int32)
    weight, bias = torch.zeros(model, sum(widths), dtype=dtype), torch.zeros(model, dtype=dtype)
    grad = torch.zeros(300, model, dtype=dtype)
    if backward:
        return lambda: event_embedding_backward_triton(grad, ids, tables, spans, weight, sparse)
    return lambda: event_embedding_triton(ids, tables, spans, weight, bias)


def embeddings(backward: bool = False) -> dict[str, Launch]:
    make = partial(embedding, backward=backward)
    return {
        "bf16 M=512": make(torch.bfloat16, 512),
        "bf16 M=512, one averaged": make(torch.bfloat16, 512, True),
        "bf16 M=512 of fp32 tables, one averaged": make(torch.bfloat16, 512, True, of=torch.float32),
        "fp32 M=128, one averaged": make(torch.float32, 128, True),
        "fp32 M=512 of bf16 tables, one averaged": make(torch.float32, 512, True, of=torch.bfloat16),
        "fp32 M=512 of fp16 tables, one averaged": make(torch.float32, 512, True, of=torch.float16),
        "fp16 M=512 of fp32 tables, one averaged": make(torch.float16, 512, True, of=torch.float32),
    }


CASES: dict[str, dict[str, Launch]] = {
    "top_keys": {
        f"C={count} k={k}": lambda count=count, k=k: top_keys_triton(torch.zeros(2, count, dtype=torch.int64), k)
        for count, k in ((1000, 1), (1000, 100), (1000, 1000), (8000, 100), (78125, 100))
    },
    "candidate_scoring": {
        "bf16 B=512 k=100": scoring(512, 100, torch.bfloat16),
        "bf16 B=512 k=1000": scoring(512, 1000, torch.bfloat16),
        "bf16 B=8 k=100": scoring(8, 100, torch.bfloat16),
        "int8 B=512 k=100": scoring(512, 100, torch.int8),
        "fp32 B=512 k=10": scoring(512, 10, torch.float32),
        "page rows": page_rows(100, 20),
    },
    "catalogue_search": {
        "bf16 Q=8": search(8, torch.bfloat16),
        "bf16 Q=64": search(64, torch.bfloat16),
        "bf16 Q=8 D=256": search(8, torch.bfloat16, 256),
        "int8 Q=8": search(8, torch.int8),
        "int8 Q=64": search(64, torch.int8),
        "bf16 Q=64 D=256": search(64, torch.bfloat16, 256),
        "bf16 Q=64 D=1024": search(64, torch.bfloat16, 1024),
        "fp32 Q=8 D=64": search(8, torch.float32, 64),
        "fp32 Q=64 D=128": search(64, torch.float32, 128),
    },
    "event_embedding": embeddings(),
    "event_embedding_backward": {
        **embeddings(backward=True),
        "bf16 M=100, odd widths": embedding(torch.bfloat16, 100, backward=True, widths=ODD),
        **{
            f"{name} M=512, sparse": embedding(dtype, 512, backward=True, sparse=True)
            for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16))
        },
    },
}
