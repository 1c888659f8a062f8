"""The shapes that candidate scoring is measured at: lists of one length, ragged rows of a page, every kind of table.

Shape letters: B members, R lists, K candidates of a list, L of all lists, N titles, D vector width, k kept.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..kernels.candidate_scoring import candidate_scoring
from .kernel_cases import SETS, Case, check_ranking, draw_ids, integers, name_of, normal, over

PAGE_ROWS = 40
CHECKED = 64  # lists, of those that cannot be checked all at once


def plain_scoring(
    table: Tensor, scales: Tensor | None, bias: Tensor | None, k: int, vectors: Tensor, candidates: Tensor,
    exclude: Tensor | None = None,
) -> Any:  # fmt: skip
    """Gather, multiply, torch.topk."""
    scores = torch.bmm(table[candidates].to(vectors.dtype), vectors[:, :, None]).squeeze(2).float()
    scores = scores if scales is None else scores * scales[candidates]
    scores = scores if bias is None else scores + bias[candidates]
    scores = scores if exclude is None else scores.masked_fill(exclude, -torch.inf)
    best = scores.topk(k, dim=1)
    return candidates.gather(1, best.indices), best.values


def scoring_case(
    table: Tensor, scales: Tensor | None, members: int, longest: int, k: int, kind: str = "uniform",
    bias: Tensor | None = None, excluded: Tensor | None = None,
) -> Case:  # fmt: skip
    """excluded: bool [N], titles that no list may return."""
    (titles, width), device = table.shape, str(table.device)
    sets = []
    for _ in range(SETS):
        candidates = draw_ids(kind, titles, (members, longest), device)
        exclude = () if excluded is None else (excluded[candidates],)
        sets.append((normal(members, width, device=device).bfloat16(), candidates, *exclude))

    def ours(vectors: Tensor, candidates: Tensor, exclude: Tensor | None = None) -> Any:
        return candidate_scoring(vectors, table, candidates, k, scales=scales, bias=bias, exclude=exclude)

    def check() -> None:
        vectors, candidates, *exclude = sets[0]
        scores = torch.stack([table[c].double() @ v.double() for v, c in zip(vectors, candidates, strict=True)])
        scores = scores if scales is None else scores * scales[candidates].double()
        scores = scores if bias is None else scores + bias[candidates].double()
        scores = scores.masked_fill(exclude[0], -torch.inf) if exclude else scores
        check_ranking(ours(*sets[0]), scores, candidates, k)

    read = sets[0][1] if excluded is None else sets[0][1][~sets[0][2]]
    row = width * table.element_size() + 4 * sum(of is not None for of in (scales, bias))
    rest = members * (longest * (8 + (excluded is not None)) + width * 2 + 12 * k)
    plain = partial(plain_scoring, table, scales, bias, k)
    return Case(
        op="candidate_scoring",
        shape=f"B={members} K={longest} D={width} N={titles} k={k}" + " bias exclude" * (excluded is not None),
        dtype=name_of(table.dtype),
        ids=kind,
        moved=len(read.unique()) * row + rest,
        logical=read.numel() * row + rest,
        flops=2 * members * longest * width,
        ours=over(sets, ours),
        peers={"torch eager": over(sets, plain), "torch.compile": over(sets, plain, by_compiler=True)},
        check=check,
    )


def plain_rows(
    table: Tensor, owner: Tensor, place: Tensor, shape: tuple[int, int], k: int, vectors: Tensor, candidates: Tensor
) -> Any:
    """Gather both sides of every pair, multiply, pad, torch.topk. owner, place: int64 [L], whose pair it is, and where
    in the padded scores of that shape."""
    padded = torch.full(shape, -torch.inf, device=table.device)
    padded.view(-1)[place] = (table[candidates] * vectors[owner]).sum(1, dtype=torch.float32)
    listed = torch.full(shape, -1, device=table.device)
    listed.view(-1)[place] = candidates
    best = padded.topk(k, dim=1)
    return listed.gather(1, best.indices), best.values


def rows_case(table: Tensor, members: int, longest: int, k: int) -> Case:
    """All rows of the members' pages at once: PAGE_ROWS each, of 1 to `longest` titles, popular ones in many."""
    (titles, width), device = table.shape, str(table.device)
    lists = members * PAGE_ROWS
    lengths = integers(longest, (lists,), device) + 1
    offsets = torch.nn.functional.pad(lengths.cumsum(0), (1, 0))
    total, starts = int(offsets[-1]), offsets[:-1]
    of = torch.arange(lists, device=device) // PAGE_ROWS
    row = torch.arange(lists, device=device).repeat_interleave(lengths)
    place = row * longest + torch.arange(total, device=device) - starts[row]
    sets = [
        (normal(members, width, device=device).bfloat16(), draw_ids("zipf", titles, (total,), device))
        for _ in range(SETS)
    ]

    def ours(vectors: Tensor, candidates: Tensor) -> Any:
        return candidate_scoring(vectors, table, candidates, k, offsets=offsets, longest=longest, members=of)

    def check() -> None:
        (vectors, candidates), (indices, values) = sets[0], ours(*sets[0])
        for i in range(0, lists, max(1, lists // CHECKED)):
            listed = candidates[offsets[i] : offsets[i + 1]][None]
            scores = vectors[of[i]][None].double() @ table[listed[0]].double().T
            check_ranking((indices[i : i + 1], values[i : i + 1]), scores, listed, k)

    size = width * table.element_size()
    rest = total * 8 + lists * (16 + 12 * k) + members * width * 2
    plain = partial(plain_rows, table, of[row], place, (lists, longest), k)
    return Case(
        op="candidate_scoring",
        shape=f"B={members} rows={PAGE_ROWS} K<={longest} D={width} N={titles} k={k}",
        dtype=name_of(table.dtype),
        ids="zipf",
        moved=len(sets[0][1].unique()) * size + rest,
        logical=total * size + rest,
        flops=2 * total * width,
        ours=over(sets, ours),
        peers={"torch eager": over(sets, plain), "torch.compile": over(sets, plain, by_compiler=True)},
        check=check,
    )


def scoring_cases(titles: int, width: int, longest: int, members: Sequence[int], device: str) -> Iterator[Case]:
    exact = normal(titles, width, device=device)
    half, most = exact.bfloat16(), exact.abs().amax(1)
    rounded = (exact * (127 / most)[:, None]).round().to(torch.int8)
    few = min(100, longest)
    for table, scales in ((half, None), (rounded, most / 127)):
        for count in members:
            for k in (few, longest):
                yield scoring_case(table, scales, count, longest, k)
    eighth = (exact * (448 / most)[:, None]).to(torch.float8_e4m3fn)
    bias, excluded = normal(titles, device=device), integers(10, (titles,), device) == 0
    for count in members[-2:]:
        yield scoring_case(eighth, most / 448, count, longest, few)
        yield scoring_case(half, None, count, longest, few, "zipf")
        yield scoring_case(half, None, count, longest, few, bias=bias, excluded=excluded)
        yield rows_case(half, count, longest // 10, min(20, longest // 10))
