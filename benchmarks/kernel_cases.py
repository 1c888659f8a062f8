"""The table of shapes that kernels are measured at: our op, its peers, its least bytes and operations, and its check.

Sizes are parameters, so that the same cases run small, without a GPU, in the tests.
Shape letters: T events, F fields, E width of all fields, M d_model, B members, K candidates, N titles, D vector width,
Q queries, k kept.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import torch.nn.functional as nnf
from torch import Tensor

from ..kernels.candidate_scoring import candidate_scoring
from ..kernels.catalogue_search import catalogue_search
from ..kernels.event_embedding import event_embedding, event_embedding_reference
from .timing import Call

SETS = 4  # of inputs, taken in turn


@dataclass
class Case:
    """One op at one shape. `ours` and each peer: one call per set of inputs."""

    op: str
    shape: str
    dtype: str
    ids: str
    moved: int
    flops: int
    ours: list[Call]
    peers: dict[str, list[Call]]
    check: Callable[[], None] = field(repr=False)


def draw_ids(kind: str, high: int, shape: tuple[int, ...], device: str) -> Tensor:
    """Ids in [0, high): "uniform", or "zipf" with P(i) ∝ 1/(i + 1), the long head of popularity."""
    if kind == "uniform":
        return torch.randint(0, high, shape, device=device)
    return ((high + 1.0) ** torch.rand(shape, device=device, dtype=torch.float64) - 1).long().clamp(0, high - 1)


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    return torch.compile(function, mode="max-autotune-no-cudagraphs", dynamic=False)


def name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def over(sets: Sequence[tuple[Any, ...]], function: Callable[..., Any]) -> list[Call]:
    """The function called with each set of inputs."""
    return [partial(function, *inputs) for inputs in sets]


def relative_error(found: Tensor, wanted: Tensor) -> float:
    """‖found − wanted‖ / ‖wanted‖ in float64; NaN if there is any."""
    return float((found.double() - wanted.double()).norm() / wanted.double().norm().clamp(min=1e-30))


def check_close(found: Tensor, wanted: Tensor, most: float = 1e-2) -> None:
    error = relative_error(found, wanted)
    if not error <= most:
        raise AssertionError(f"relative error {error:.2e}, at most {most:.0e} is right")


def check_ranking(found: tuple[Tensor, Tensor], scores: Tensor, listed: Tensor | None, k: int) -> None:
    """`found` against float64 `scores` of `listed` (or of all titles): values, and each index has the score it says."""
    indices, values = found
    wanted = scores.topk(min(k, scores.shape[1]), dim=1).values
    check_close(values[:, : wanted.shape[1]], wanted, 1e-5)
    for row in range(len(indices)):
        index = indices[row, : wanted.shape[1]]
        place = index if listed is None else _places(listed[row], index)
        check_close(scores[row][place], values[row, : len(place)], 1e-5)


def _places(listed: Tensor, index: Tensor) -> Tensor:
    """Where in `listed` each of `index` stands."""
    order = listed.argsort()
    return order[torch.searchsorted(listed[order], index)]


def embedding_inputs(
    tokens: int, rows: int, d_model: int, kind: str, dtype: torch.dtype, device: str
) -> tuple[Tensor, list[Tensor], list[tuple[int, int]], Tensor, Tensor]:
    """Ten fields: one of half the width with `rows` rows, nine small ones of 2 to 258 rows; E = M = d_model."""
    entity = d_model // 2
    small = d_model // 16
    widths = [entity] + [small] * 7 + [small // 2] * 2
    heights = [rows, 2, 4, 8, 24, 32, 64, 128, 200, 258]
    tables = [torch.randn(h, w, device=device).to(dtype) for h, w in zip(heights, widths, strict=True)]
    ids = torch.stack(
        [draw_ids(kind if i == 0 else "uniform", h, (tokens,), device) for i, h in enumerate(heights)], dim=1
    ).int()
    weight = (torch.randn(d_model, d_model, device=device) * d_model**-0.5).to(dtype)
    bias = torch.randn(d_model, device=device).to(dtype)
    return ids, tables, [(i, i + 1) for i in range(10)], weight, bias


def embedding_case(kind: str, tokens: int, rows: int, d_model: int, device: str, dtype: torch.dtype) -> Case:
    sets = [embedding_inputs(tokens, rows, d_model, kind, dtype, device) for _ in range(SETS)]
    ids, tables, _, weight, bias = sets[0]
    unique = sum(len(ids[:, i].unique()) * t.shape[1] for i, t in enumerate(tables))
    concatenated = torch.cat([nnf.embedding(ids[:, i], t) for i, t in enumerate(tables)], dim=1)

    def check() -> None:
        exact = [t.double() for t in tables]
        truth = event_embedding_reference(ids, exact, sets[0][2], weight.double(), bias.double())
        check_close(event_embedding(*sets[0]), truth)

    return Case(
        op="event_embedding",
        shape=f"T={tokens} F=10 E=M={d_model} V={rows}",
        dtype=name_of(dtype),
        ids=kind,
        moved=dtype.itemsize * (unique + d_model * d_model + tokens * d_model) + 4 * ids.numel(),
        flops=2 * tokens * d_model * d_model,
        ours=over(sets, event_embedding),
        peers={
            "torch eager": over(sets, event_embedding_reference),
            "torch.compile": over(sets, compiled(event_embedding_reference)),
            "matrix product alone": over([(concatenated, weight, bias)], nnf.linear),
        },
        check=check,
    )


def embedding_backward_case(kind: str, tokens: int, rows: int, d_model: int, device: str, dtype: torch.dtype) -> Case:
    """Gradients of every table, the weight and the bias."""
    sets = []
    for _ in range(SETS):
        ids, tables, spans, weight, bias = embedding_inputs(tokens, rows, d_model, kind, dtype, device)
        inputs = [t.requires_grad_() for t in (*tables, weight, bias)]
        sets.append((ids, spans, inputs, torch.randn(tokens, d_model, device=device).to(dtype)))
    ids, spans, inputs, gradient = sets[0]
    entity, unique = inputs[0].shape[1], len(ids[:, 0].unique())

    def graph(function: Callable[..., Tensor]) -> list[Call]:
        outputs = [function(ids, inputs[:-2], spans, *inputs[-2:]) for ids, spans, inputs, _ in sets]
        given = [(out, inputs, gradient) for out, (_, _, inputs, gradient) in zip(outputs, sets, strict=True)]
        return over(given, partial(torch.autograd.grad, retain_graph=True))

    def check() -> None:
        exact = [t.detach().double().requires_grad_() for t in inputs]
        out = event_embedding_reference(ids, exact[:-2], spans, *exact[-2:])
        truth = torch.autograd.grad(out, exact, gradient.double())
        found = torch.autograd.grad(event_embedding(ids, inputs[:-2], spans, *inputs[-2:]), inputs, gradient)
        for one, other in zip(found, truth, strict=True):
            check_close(one, other)

    size = dtype.itemsize
    return Case(
        op="event_embedding backward",
        shape=f"T={tokens} F=10 E=M={d_model} V={rows}",
        dtype=name_of(dtype),
        ids=kind,
        moved=size * 2 * tokens * (d_model + entity) + unique * entity * (size + 4),
        flops=4 * tokens * entity * d_model,
        ours=graph(event_embedding),
        peers={
            "torch eager": graph(event_embedding_reference),
            "torch.compile": graph(compiled(event_embedding_reference)),
        },
        check=check,
    )


def embedding_cases(tokens: int, rows: int, d_model: int, device: str, dtype: torch.dtype) -> Iterator[Case]:
    for kind in ("uniform", "zipf"):
        yield embedding_case(kind, tokens, rows, d_model, device, dtype)
        yield embedding_backward_case(kind, tokens, rows, d_model, device, dtype)


def plain_scoring(table: Tensor, scales: Tensor | None, k: int, vectors: Tensor, candidates: Tensor) -> Any:
    """Gather, multiply, torch.topk."""
    scores = torch.bmm(table[candidates].to(vectors.dtype), vectors[:, :, None]).squeeze(2).float()
    scores = scores if scales is None else scores * scales[candidates]
    best = scores.topk(k, dim=1)
    return candidates.gather(1, best.indices), best.values


def scoring_case(table: Tensor, scales: Tensor | None, members: int, longest: int, k: int) -> Case:
    (titles, width), device = table.shape, table.device
    sets = [
        (
            torch.randn(members, width, device=device).bfloat16(),
            torch.randint(titles, (members, longest), device=device),
        )
        for _ in range(SETS)
    ]

    def ours(vectors: Tensor, candidates: Tensor) -> Any:
        return candidate_scoring(vectors, table, candidates, k, scales=scales)

    def check() -> None:
        scores = [table[c].double() @ v.double() for v, c in zip(*sets[0], strict=True)]
        if scales is not None:
            scores = [s * scales[c].double() for s, c in zip(scores, sets[0][1], strict=True)]
        check_ranking(ours(*sets[0]), torch.stack(scores), sets[0][1], k)

    read = width * table.element_size() + 8 + (0 if scales is None else 4)
    plain = partial(plain_scoring, table, scales, k)
    return Case(
        op="candidate_scoring",
        shape=f"B={members} K={longest} D={width} N={titles} k={k}",
        dtype=name_of(table.dtype),
        ids="uniform",
        moved=members * (longest * read + width * 2 + 12 * k),
        flops=2 * members * longest * width,
        ours=over(sets, ours),
        peers={"torch eager": over(sets, plain), "torch.compile": over(sets, compiled(plain))},
        check=check,
    )


def scoring_cases(titles: int, width: int, longest: int, members: Sequence[int], device: str) -> Iterator[Case]:
    exact = torch.randn(titles, width, device=device)
    scales = exact.abs().amax(1) / 127
    rounded = (exact / scales[:, None]).round().to(torch.int8)
    for table, scale in ((exact.bfloat16(), None), (rounded, scales)):
        for count in members:
            for k in (min(100, longest), longest):
                yield scoring_case(table, scale, count, longest, k)


def plain_search(table: Tensor, k: int, queries: Tensor) -> Any:
    """All scores, torch.topk."""
    return (queries @ table.T).float().topk(k, dim=1)


def search_case(table: Tensor, asked: int, k: int, faiss: Callable[..., Any] | None) -> Case:
    titles, width = table.shape
    sets = [(torch.randn(asked, width, device=table.device).bfloat16(),) for _ in range(SETS)]

    def ours(queries: Tensor) -> Any:
        return catalogue_search(queries, table, k)

    def check() -> None:
        for query in sets[0][0][:8].split(1):
            scores = torch.cat([query.double() @ part.double().T for part in table.split(1 << 20)], dim=1)
            check_ranking(ours(query), scores, None, k)

    plain = partial(plain_search, table, k)
    peers = {"torch eager": over(sets, plain), "torch.compile": over(sets, compiled(plain))}
    if faiss is not None:
        peers["faiss GPU flat"] = over([(q.float(), k) for (q,) in sets], faiss)
    return Case(
        op="catalogue_search",
        shape=f"Q={asked} N={titles} D={width} k={k}",
        dtype=name_of(table.dtype),
        ids="all",
        moved=titles * width * 2 + asked * (width * 2 + 12 * k),
        flops=2 * asked * titles * width,
        ours=over(sets, ours),
        peers=peers,
        check=check,
    )


def search_cases(titles: int, width: int, k: int, queries: Sequence[int], device: str) -> Iterator[Case]:
    table = torch.randn(titles, width, device=device).bfloat16()
    faiss = _faiss_gpu(table)
    for asked in queries:
        yield search_case(table, asked, k, faiss)


def _faiss_gpu(table: Tensor) -> Callable[[Tensor, int], Any] | None:
    """FAISS' exact GPU index, where its GPU build is installed."""
    if not table.is_cuda or importlib.util.find_spec("faiss") is None:
        return None
    import faiss
    import faiss.contrib.torch_utils  # torch tensors as arguments

    if not hasattr(faiss, "StandardGpuResources"):
        return None
    settings = faiss.GpuIndexFlatConfig()
    settings.useFloat16 = True
    index = faiss.GpuIndexFlatIP(faiss.StandardGpuResources(), table.shape[1], settings)
    for part in table.split(1 << 20):
        index.add(part.float())  # type: ignore[call-arg]
    return index.search
