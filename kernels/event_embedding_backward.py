"""The gradients of event_embedding: of its tables, weight and bias, the same bits from run to run.

With A_f [T, V_f] the one-hot (or mean) matrix of field f, its part of the result is A_f E_f W_fᵀ. For a small
vocabulary all follows from dP_f = A_fᵀ dY [V_f, M], a product of tensor cores that needs nothing of size T × E:
dE_f = dP_f W_f and dW_fᵀ = E_fᵀ dP_f. For a large one (entities) the rows of dY W_f are summed by id in sorted order,
and dW_f = dYᵀ A_f E_f gathers again. Sums over events are split into parts, which are then added in order: no atomics.

Shape letters: T events, C columns of encoded ids, F fields, E = Σ table widths, M d_model, V rows, N = T · slots
occurrences of ids.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import accumulate
from typing import Any

import torch
import torch.nn.functional as nnf
from torch import Tensor

from .field_groups import (
    WIDTH,
    aligned,
    concatenation,
    field_groups,
    group_rows,
    kept_if_captured,
    load_groups,
    lowest,
    mean_groups,
    padded_weight,
    pairs,
    spread,
)
from .jit import ceil_div, constexpr, jit, next_power_of_2, on_its_device, tl
from .segment_sum import segment_sum_triton

Spans = Sequence[tuple[int, int]]
SMALL = 512  # rows of a vocabulary whose gradient is a product: with more, sorting is less work
PROGRAMS = 264  # two for each processor of a large GPU; sums over events are split until there are as many
# In the place of a row's id: a row that no event meets, whatever its ids (those of averaged fields are masked, and
# elsewhere such rows are not read), and one that every event does, whose gradient is the bias's.
NEVER, ALWAYS = -(1 << 31), -2


@torch.library.custom_op("frontrow::event_embedding_backward", mutates_args=(), device_types="cpu")
def event_embedding_backward(
    grad: Tensor, ids: Tensor, tables: Sequence[Tensor], columns: Sequence[int], weight: Tensor, sparse: bool
) -> list[Tensor]:
    """grad: [T, M], of the result. Returns the gradients of the tables in order, of weight and of bias; if sparse, in
    the place of a large table's the values [N, E_f] of its row-sparse gradient, and at the end for each such table the
    rows int64 [N] they belong to. Which tables are large: `large`.

    NaN and infinity are never lost, but on a GPU they spread further than they must, since the sums are products with
    zeros and 0 · NaN is NaN: one in grad, to rows of other events' ids; one in a row of a small table, to the weight's
    gradient even where no event has that row."""
    return event_embedding_backward_reference(grad, ids, tables, pairs(columns), weight, sparse)


def large(tables: Sequence[Tensor]) -> list[int]:
    """The fields whose gradient is summed in sorted order."""
    return [f for f, table in enumerate(tables) if len(table) > SMALL]


@event_embedding_backward.register_fake
def _shapes(
    grad: Tensor, ids: Tensor, tables: Sequence[Tensor], columns: Sequence[int], weight: Tensor, sparse: bool
) -> list[Tensor]:
    return _empty(ids, tables, pairs(columns), weight, sparse)


def _empty(ids: Tensor, tables: Sequence[Tensor], spans: Spans, weight: Tensor, sparse: bool) -> list[Tensor]:
    """What event_embedding_backward returns, its values not written."""
    found, rows = [torch.empty_like(t) for t in tables], []
    for f in large(tables) if sparse else ():
        count = ids.shape[0] * (spans[f][1] - spans[f][0])
        found[f] = tables[f].new_empty(count, tables[f].shape[1])
        rows.append(ids.new_empty(count, dtype=torch.int64))
    return [*found, torch.empty_like(weight), weight.new_empty(weight.shape[0]), *rows]


@on_its_device
def event_embedding_backward_reference(
    grad: Tensor, ids: Tensor, tables: Sequence[Tensor], spans: Spans, weight: Tensor, sparse: bool
) -> list[Tensor]:
    """The same in torch on any device. What CPUs run."""
    found, rows = [], []
    of_rows = (grad @ weight).split([t.shape[1] for t in tables], dim=1)
    for f, (table, (start, stop)) in enumerate(zip(tables, spans, strict=True)):
        values, index = of_rows[f].to(table.dtype), ids[:, start:stop].reshape(-1)
        if stop - start > 1:
            values = (values[:, None] * shares(ids[:, start:stop], len(table), table.dtype)[:, :, None]).flatten(0, 1)
        if sparse and f in large(tables):
            found.append(values.clone())
            rows.append(index.to(torch.int64))
        else:
            found.append(torch.ops.aten.embedding_dense_backward(values.contiguous(), index, len(table), -1, False))
    weight_grad = grad.T @ concatenation(ids, tables, spans).to(grad.dtype)
    return [*found, weight_grad, grad.sum(0), *rows]


def shares(ids: Tensor, size: int, dtype: torch.dtype) -> Tensor:
    """The weight of each id of an averaged field: ids [T, S] → [T, S], 1 / count of those that count, which are above 0
    and below size, and 0 for others."""
    listed = ((ids > 0) & (ids < size)).to(dtype)
    return listed / listed.sum(1, keepdim=True).clamp(min=1)


@event_embedding_backward.register_kernel("cuda")
def _cuda(
    grad: Tensor, ids: Tensor, tables: Sequence[Tensor], columns: Sequence[int], weight: Tensor, sparse: bool
) -> list[Tensor]:
    return event_embedding_backward_triton(grad, ids, tables, pairs(columns), weight, sparse)


@on_its_device
def event_embedding_backward_triton(
    grad: Tensor, ids: Tensor, tables: Sequence[Tensor], spans: Spans, weight: Tensor, sparse: bool = False
) -> list[Tensor]:
    """The same by kernels. Launches and shapes depend on shapes alone: nothing waits for the GPU."""
    model, short = len(weight), -len(weight) % 16
    if not model:
        return [torch.zeros_like(t) for t in _empty(ids, tables, spans, weight, sparse)]
    if short:  # zeros, without which a gradient would be loaded 2 bytes at a time
        grad, weight = nnf.pad(grad, (0, short)), nnf.pad(weight, (0, 0, 0, short))
    grad, ids = grad.contiguous(), ids.contiguous()
    widths = [t.shape[1] for t in tables]
    wide, whole = [aligned(t) for t in tables], padded_weight(weight, tables)
    of_field = whole.split([t.shape[1] for t in wide], dim=1)
    found: list[Any] = [None] * len(tables)
    of_weight: list[Any] = [None] * len(tables)
    rows = []
    big = large(tables)
    small = [f for f in range(len(tables)) if f not in big]
    *products, of_bias = _row_sums(grad, ids, [len(tables[f]) for f in small], [spans[f] for f in small])
    for f, product in zip(small, products, strict=True):
        found[f] = product @ of_field[f].float()
        of_weight[f] = product.T @ wide[f].float()
    if big:
        gathered = _weight_grad(grad, ids, [wide[f] for f in big], [spans[f] for f in big])
        for f, part in zip(big, gathered.split([wide[f].shape[1] for f in big], dim=1), strict=True):
            of_weight[f] = part
    for f in big:
        column = ids[:, spans[f][0] : spans[f][1]]
        share = shares(column, len(tables[f]), torch.float32).flatten() if column.shape[1] > 1 else None
        found[f], index = segment_sum_triton(
            grad @ of_field[f], column.flatten(), share, len(tables[f]), tables[f].dtype, sparse
        )
        rows += [index] if index is not None else []
    found = [g[:, :w].to(t.dtype).contiguous() for g, w, t in zip(found, widths, tables, strict=True)]
    weight_grad = torch.cat([g[:model, :w] for g, w in zip(of_weight, widths, strict=True)], dim=1).to(weight.dtype)
    return [*found, weight_grad, of_bias[0, :model].to(weight.dtype), *rows]


def _row_sums(grad: Tensor, ids: Tensor, sizes: Sequence[int], spans: Spans) -> list[Tensor]:
    """A_fᵀ dY of each field, float32 [V_f, M], and at the end Σ_t dY, [1, M]."""
    cores = grad.dtype != torch.float32
    tile, tile_v = (64, 128) if cores else (32, 32)
    model = grad.shape[1]
    tile_m = min(max(next_power_of_2(model), 16), 128 if cores else 64)
    found = {}
    for slots in sorted({1, *(stop - start for start, stop in spans)}):
        fields = [f for f, (start, stop) in enumerate(spans) if stop - start == slots]
        of_fields = tuple((spans[f][0], sizes[f]) for f in fields)
        known = kept_if_captured(_known_rows(of_fields, slots, tile_v, ids.device))
        tiles = (len(known) // tile_v, ceil_div(model, tile_m))
        splits, each = _splits(len(grad), tile, tiles)
        parts = grad.new_empty(splits, len(known), model, dtype=torch.float32)
        _sum_rows[(*tiles, splits)](
            ids,
            known,
            grad,
            parts,
            len(grad),
            ids.shape[1],
            each,
            len(known),
            model,
            slots,
            AVERAGED=slots > 1,
            TILE=tile // 2 if slots > 1 else tile,
            TILE_V=tile_v,
            TILE_M=tile_m,
            num_warps=8 if cores and tile_m > 64 else 4,
        )
        total = parts.sum(0)
        counts = [sizes[f] for f in fields] + [1] * (slots == 1)
        found |= dict(zip([*fields, len(spans)], total[: sum(counts)].split(counts), strict=False))
    return [found[f] for f in range(len(spans) + 1)]


def _splits(events: int, tile: int, tiles: tuple[int, int]) -> tuple[int, int]:
    """(parts of the events, events of each, a multiple of tile). At least one; by shapes alone."""
    splits = max(1, min(PROGRAMS // (tiles[0] * tiles[1]), ceil_div(events, 8 * tile)))
    each = ceil_div(max(ceil_div(events, splits), 1), tile) * tile
    return max(1, ceil_div(events, each)), each


@lru_cache(maxsize=256)
def _known_rows(fields: tuple[tuple[int, int], ...], slots: int, tile: int, device: torch.device) -> Tensor:
    """int32 [rows, 3]: first column, id and V of each row of fields (first column, V), ALWAYS after fields of one
    column, up to a multiple of tile."""
    rows = [(column, i if i or slots == 1 else NEVER, size) for column, size in fields for i in range(size)]
    rows += [(0, ALWAYS, 0)] * (slots == 1)
    rows += [(0, NEVER, 0)] * (-len(rows) % tile)
    return torch.tensor(rows, dtype=torch.int32, device=device)


@jit("events", "columns", "each", "rows", "slots")
def _sum_rows(
    IDS,
    KNOWN,
    GRAD,
    PARTS,
    events,
    columns,
    each,
    rows,
    model,
    slots,
    AVERAGED: constexpr,
    TILE: constexpr,
    TILE_V: constexpr,
    TILE_M: constexpr,
):
    v = tl.program_id(0) * TILE_V + tl.arange(0, TILE_V)
    m = tl.program_id(1) * TILE_M + tl.arange(0, TILE_M)
    split = tl.program_id(2)
    column = tl.load(KNOWN + v * 3)
    value = tl.load(KNOWN + v * 3 + 1)[None, :]
    size = tl.load(KNOWN + v * 3 + 2)[None, :] if AVERAGED else None
    start = split * each
    stop = tl.minimum(start + each, events)
    total = tl.zeros([TILE_V, TILE_M], tl.float32)
    # Ids are read a tile ahead, straight from the cache: lanes of a warp share an event's line.
    ids = _ids(IDS, column, start + tl.arange(0, TILE), events, columns)
    for at in tl.range(start, stop, TILE, num_stages=1 if AVERAGED else 3):
        t = at + tl.arange(0, TILE)
        if AVERAGED:
            counts = (ids > 0) & (ids < size)
            matrix = (counts & (ids == value)).to(tl.float32)
            count = counts.to(tl.float32)
            for slot in tl.range(1, slots, num_stages=1):
                others = _ids(IDS, column + slot, t, events, columns)
                counts = (others > 0) & (others < size)
                matrix += (counts & (others == value)).to(tl.float32)
                count += counts.to(tl.float32)
            matrix /= tl.maximum(count, 1.0)
        else:
            matrix = ((ids == value) | (value == -2)).to(tl.float32)
        grad = _grad(GRAD, t, m, events, model)
        total = tl.dot(tl.trans(matrix.to(grad.dtype)), grad, total, input_precision="ieee")
        ids = _ids(IDS, column, t + TILE, events, columns)
    out = PARTS + (split.to(tl.int64) * rows + v[:, None]) * model + m[None, :]
    tl.store(out, total, mask=(m < model)[None, :])


@jit()
def _ids(IDS, column, t, events, columns):
    """Ids of events t in columns, [T, columns]; −1 past the last event."""
    at = IDS + t.to(tl.int64)[:, None] * columns + column[None, :]
    return tl.load(at, mask=(t < events)[:, None], other=-1)


@jit()
def _grad(GRAD, t, m, events, model):
    inside = (t < events)[:, None] & (m < model)[None, :]
    return tl.load(GRAD + t.to(tl.int64)[:, None] * model + m[None, :], mask=inside, other=0.0)


def _weight_grad(grad: Tensor, ids: Tensor, tables: Sequence[Tensor], spans: Spans) -> Tensor:
    """dYᵀ A_f E_f of the fields side by side, float32 [M, Σ E_f]."""
    events, model = grad.shape
    starts = [*accumulate((t.shape[1] for t in tables), initial=0)]
    cores = grad.dtype != torch.float32
    chunk = 128 if cores else 32
    tile, tile_m = (64, 128) if cores else (32, 32)
    groups = field_groups(tables, spans, starts[:-1], chunk)
    out = grad.new_empty(model, starts[-1], dtype=torch.float32)
    for averaged, count in enumerate((groups.single, groups.averaged)):
        if not count:
            continue
        tiles = (count, ceil_div(model, tile_m))
        splits, each = _splits(events, tile, tiles)
        parts = grad.new_empty(splits, *out.shape, dtype=torch.float32)
        _project_back[(*tiles, splits)](
            ids,
            lowest(tables),
            groups.meta,
            grad,
            parts,
            events,
            ids.shape[1],
            each,
            groups.single * averaged * (chunk // WIDTH),
            groups.slots,
            model,
            out.shape[1],
            AVERAGED=bool(averaged),
            TILE=tile,
            TILE_M=tile_m,
            GROUPS=chunk // WIDTH // (1 + averaged),
            num_warps=8 if cores else 4,
            num_stages=3,
        )
        for table, (start, stop), at in zip(tables, spans, starts, strict=False):
            if (stop - start > 1) == bool(averaged):
                out[:, at : at + table.shape[1]] = parts[:, :, at : at + table.shape[1]].sum(0)
    return out


@jit("events", "columns", "each", "first", "slots")
def _project_back(
    IDS,
    TABLES,
    META,
    GRAD,
    PARTS,
    events,
    columns,
    each,
    first,
    slots,
    model,
    width,
    AVERAGED: constexpr,
    TILE: constexpr,
    TILE_M: constexpr,
    GROUPS: constexpr,
):
    group = first + tl.program_id(0) * GROUPS
    m = tl.program_id(1) * TILE_M + tl.arange(0, TILE_M)
    split = tl.program_id(2)
    start = split * each
    stop = tl.minimum(start + each, events)
    total = tl.zeros([TILE_M, GROUPS * 8], tl.float32)
    if AVERAGED:
        for at in tl.range(start, stop, TILE, num_stages=1):
            t = at + tl.arange(0, TILE)
            grad = _grad(GRAD, t, m, events, model)
            means = mean_groups(TABLES, IDS, META, group, slots, t, events, columns, TILE, GROUPS)
            total = tl.dot(tl.trans(grad), means.to(grad.dtype), total, input_precision="ieee")
    else:
        offsets = group_rows(IDS, META, group, 0, start + tl.arange(0, TILE), events, columns, 0, GROUPS)
        for at in tl.range(start, stop, TILE):
            t = at + tl.arange(0, TILE)
            grad = _grad(GRAD, t, m, events, model)
            rows = load_groups(TABLES, offsets, TILE, GROUPS).to(grad.dtype)
            total = tl.dot(tl.trans(grad), rows, total, input_precision="ieee")
            offsets = group_rows(IDS, META, group, 0, t + TILE, events, columns, 0, GROUPS)
    known = META + (group + tl.arange(0, GROUPS)) * 6
    place = tl.where(tl.load(known + 2) > 0, tl.load(known + 5), -8)
    place = tl.broadcast_to(place[None, :], [TILE_M, GROUPS])
    column = spread(place, TILE_M, GROUPS)
    out = PARTS + (split.to(tl.int64) * model + m[:, None]) * width + column
    tl.store(out, total, mask=(m < model)[:, None] & (column >= 0))
