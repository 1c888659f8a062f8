"""The table of shapes that kernels are measured at: our op, its peers, its least bytes and operations, and its check.
Candidate scoring has its own file, kernel_cases_scoring.

Sizes are parameters, so that the same cases run small, without a GPU, in the tests.
Shape letters: T events, F fields, E width of all fields, M d_model, B members, K candidates, N titles, D vector width,
Q queries, k kept.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Any

import torch
import torch._functorch.config as functorch_config
import torch.nn.functional as nnf
from torch import Tensor

from ..kernels.catalogue_search import catalogue_search
from ..kernels.event_embedding import event_embedding, event_embedding_reference
from .timing import Call

SETS = 4  # of inputs, taken in turn
Calls = Callable[[], list[Call]]


@dataclass
class Case:
    """One op at one shape. `ours` and each peer make their calls, one per set of inputs, when they are asked to: it may
    take a compiler, or fail.

    moved: least bytes, of what must be read or written at least once; a row that several ask for counts once, since a
    cache may hold it. logical: bytes with such a row counted each time."""

    op: str
    shape: str
    dtype: str
    ids: str
    moved: int
    logical: int
    flops: int
    ours: Calls
    peers: dict[str, Calls]
    check: Callable[[], None] = field(repr=False)


@cache
def generator(device: str) -> torch.Generator:
    """Of all inputs. Not torch's own: that one stays unusable after a graph capture that failed."""
    return torch.Generator(device).manual_seed(0)


def normal(*shape: int, device: str) -> Tensor:
    return torch.randn(shape, device=device, generator=generator(device))


def integers(high: int, shape: tuple[int, ...], device: str) -> Tensor:
    return torch.randint(high, shape, device=device, generator=generator(device))


def draw_ids(kind: str, high: int, shape: tuple[int, ...], device: str) -> Tensor:
    """Ids in [0, high): "uniform", or "zipf" with P(i) ∝ 1/(i + 1), the long head of popularity."""
    if kind == "uniform":
        return integers(high, shape, device)
    return (
        ((high + 1.0) ** torch.rand(shape, device=device, dtype=torch.float64, generator=generator(device)) - 1)
        .long()
        .clamp(0, high - 1)
    )


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """With nothing left of what was compiled before: past eight variants torch would run eagerly and not say so."""
    torch._dynamo.reset()
    functorch_config.donated_buffer = False  # the backward pass is run more than once
    return torch.compile(function, mode="max-autotune-no-cudagraphs", dynamic=False)


def name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def over(sets: Sequence[tuple[Any, ...]], function: Callable[..., Any], by_compiler: bool = False) -> Calls:
    """The function, or what torch.compile makes of it, called with each set of inputs."""

    def make() -> list[Call]:
        called = compiled(function) if by_compiler else function
        return [partial(called, *inputs) for inputs in sets]

    return make


def relative_error(found: Tensor, wanted: Tensor) -> float:
    """‖found − wanted‖ / ‖wanted‖ in float64; NaN if there is any."""
    return float((found.double() - wanted.double()).norm() / wanted.double().norm().clamp(min=1e-30))


def check_close(found: Tensor, wanted: Tensor, most: float = 1e-2) -> None:
    """The whole, and each row by itself: one wrong row of many hides in the whole."""
    error = relative_error(found, wanted)
    if not error <= most:
        raise AssertionError(f"relative error {error:.2e}, at most {most:.0e} is right")
    if found.dim() == 2 and len(found):
        usual = wanted.double().norm() / len(wanted) ** 0.5
        rows = (found.double() - wanted.double()).norm(dim=1) / wanted.double().norm(dim=1).clamp(min=float(usual) / 10)
        if not float(rows.max()) <= 10 * most:
            raise AssertionError(f"row {int(rows.argmax())} has relative error {float(rows.max()):.2e}")


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
    place = order[torch.searchsorted(listed[order], index).clamp(max=len(listed) - 1)]
    if not torch.equal(listed[place], index):
        raise AssertionError("an index was returned that is not in its list")
    return place


def embedding_inputs(
    tokens: int, rows: int, d_model: int, kind: str, dtype: torch.dtype, device: str
) -> tuple[Tensor, list[Tensor], list[tuple[int, int]], Tensor, Tensor]:
    """Ten fields: one of half the width with `rows` rows, nine small ones of 2 to 258 rows; E = M = d_model."""
    entity = d_model // 2
    small = d_model // 16
    widths = [entity] + [small] * 7 + [small // 2] * 2
    heights = [rows, 2, 4, 8, 24, 32, 64, 128, 200, 258]
    tables = [normal(h, w, device=device).to(dtype) for h, w in zip(heights, widths, strict=True)]
    ids = torch.stack(
        [draw_ids(kind if i == 0 else "uniform", h, (tokens,), device) for i, h in enumerate(heights)], dim=1
    ).int()
    weight = (normal(d_model, d_model, device=device) * d_model**-0.5).to(dtype)
    bias = normal(d_model, device=device).to(dtype)
    return ids, tables, [(i, i + 1) for i in range(10)], weight, bias


def embedding_case(kind: str, tokens: int, rows: int, d_model: int, device: str, dtype: torch.dtype) -> Case:
    sets = [embedding_inputs(tokens, rows, d_model, kind, dtype, device) for _ in range(SETS)]
    ids, tables, _, weight, bias = sets[0]
    unique = sum(len(ids[:, i].unique()) * t.shape[1] for i, t in enumerate(tables))
    rest = dtype.itemsize * (d_model * d_model + tokens * d_model) + 4 * ids.numel()
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
        moved=dtype.itemsize * unique + rest,
        logical=dtype.itemsize * tokens * d_model + rest,
        flops=2 * tokens * d_model * d_model,
        ours=over(sets, event_embedding),
        peers={
            "torch eager": over(sets, event_embedding_reference),
            "torch.compile": over(sets, event_embedding_reference, by_compiler=True),
            "matrix product alone": over([(concatenated, weight, bias)], nnf.linear),
        },
        check=check,
    )


def sparse_eager(
    ids: Tensor, tables: Sequence[Tensor], spans: Sequence[tuple[int, int]], weight: Tensor, bias: Tensor
) -> Tensor:
    """The op in torch with a row-sparse gradient of the first table."""
    parts = [nnf.embedding(ids[:, i], t, sparse=i == 0) for i, t in enumerate(tables)]
    return nnf.linear(torch.cat(parts, dim=1), weight, bias)


def embedding_backward_case(
    kind: str, tokens: int, rows: int, d_model: int, device: str, dtype: torch.dtype, sparse: bool
) -> Case:
    """Gradients of every table, the weight and the bias; that of the large table dense or row-sparse."""
    own = partial(event_embedding, sparse=sparse)
    eager = sparse_eager if sparse else event_embedding_reference
    sets = []
    for _ in range(SETS):
        ids, tables, spans, weight, bias = embedding_inputs(tokens, rows, d_model, kind, dtype, device)
        inputs = [t.requires_grad_() for t in (*tables, weight, bias)]
        sets.append((ids, spans, inputs, normal(tokens, d_model, device=device).to(dtype)))
    ids, spans, inputs, gradient = sets[0]
    entity, unique = inputs[0].shape[1], len(ids[:, 0].unique())

    def graph(function: Callable[..., Tensor], by_compiler: bool = False) -> Calls:
        def make() -> list[Call]:
            forward = compiled(function) if by_compiler else function
            outputs = [forward(ids, inputs[:-2], spans, *inputs[-2:]) for ids, spans, inputs, _ in sets]
            given = [(out, inputs, gradient) for out, (_, _, inputs, gradient) in zip(outputs, sets, strict=True)]
            return over(given, partial(torch.autograd.grad, retain_graph=True))()

        return make

    def check() -> None:
        exact = [t.detach().double().requires_grad_() for t in inputs]
        out = event_embedding_reference(ids, exact[:-2], spans, *exact[-2:])
        truth = torch.autograd.grad(out, exact, gradient.double())
        found = torch.autograd.grad(own(ids, inputs[:-2], spans, *inputs[-2:]), inputs, gradient)
        for one, other in zip(found, truth, strict=True):
            check_close(one.to_dense() if one.is_sparse else one, other)

    size = dtype.itemsize
    rest = size * 2 * tokens * (d_model + entity)
    return Case(
        op="event_embedding backward",
        shape=f"T={tokens} F=10 E=M={d_model} V={rows} {'sparse' if sparse else 'dense'}",
        dtype=name_of(dtype),
        ids=kind,
        moved=rest + (unique if sparse else rows) * entity * size,
        logical=rest + (tokens if sparse else rows) * entity * size,
        flops=4 * tokens * entity * d_model,
        ours=graph(own),
        peers={"torch eager": graph(eager)} | ({} if sparse else {"torch.compile": graph(eager, by_compiler=True)}),
        check=check,
    )


def embedding_cases(tokens: int, rows: int, d_model: int, device: str, dtype: torch.dtype) -> Iterator[Case]:
    for kind in ("uniform", "zipf"):
        yield embedding_case(kind, tokens, rows, d_model, device, dtype)
        for sparse in (True, False):
            yield embedding_backward_case(kind, tokens, rows, d_model, device, dtype, sparse)


def plain_search(table: Tensor, k: int, queries: Tensor) -> Any:
    """All scores in float32, torch.topk."""
    scores = (
        torch.mm(queries, table.T, out_dtype=torch.float32) if queries.is_cuda else queries.float() @ table.float().T
    )
    return scores.topk(k, dim=1)


def search_case(table: Tensor, asked: int, k: int, faiss: Callable[..., Any] | None) -> Case:
    titles, width = table.shape
    sets = [(normal(asked, width, device=str(table.device)).bfloat16(),) for _ in range(SETS)]

    def ours(queries: Tensor) -> Any:
        return catalogue_search(queries, table, k)

    def check() -> None:
        queries, (indices, values) = sets[0][0], ours(*sets[0])
        for row in {0, 1, asked // 2, asked - 1} & set(range(asked)):
            query = queries[row : row + 1].double()
            scores = torch.cat([query @ part.double().T for part in table.split(1 << 20)], dim=1)
            check_ranking((indices[row : row + 1], values[row : row + 1]), scores, None, k)

    moved = titles * width * 2 + asked * (width * 2 + 12 * k)
    plain = partial(plain_search, table, k)
    peers = {"torch eager": over(sets, plain), "torch.compile": over(sets, plain, by_compiler=True)}
    if faiss is not None:
        peers["faiss GPU flat"] = over([(q.float(), k) for (q,) in sets], faiss)
    return Case(
        op="catalogue_search",
        shape=f"Q={asked} N={titles} D={width} k={k}",
        dtype=name_of(table.dtype),
        ids="all",
        moved=moved,
        logical=moved,
        flops=2 * asked * titles * width,
        ours=over(sets, ours),
        peers=peers,
        check=check,
    )


def search_cases(titles: int, width: int, k: int, queries: Sequence[int], device: str) -> Iterator[Case]:
    table = normal(titles, width, device=device).bfloat16()
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
