"""The fields of an event_embedding as groups of 8 columns: what its kernels read of them, and how they gather.

A kernel works on chunks of the concatenation that it never writes. A chunk is GROUPS groups, each 8 columns of one
table, so that narrow fields share a chunk and each thread loads whole groups, 16 bytes at a time. Fields of one column
of ids come first; those whose rows are averaged have chunks of their own.

Shape letters: T events, C columns of encoded ids, E = Σ table widths, G groups.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as nnf
from torch import Tensor

from .jit import ceil_div, constexpr, jit, tl

WIDTH = 8  # columns of a group
FIELDS = 6  # what is known of a group, see `_groups`
ALIGNED = 32  # bytes; of 8 float32 columns


@dataclass(frozen=True)
class Groups:
    """meta: int64 [groups of single fields, then of averaged ones, then a chunk of empty ones; FIELDS].

    single, averaged: numbers of chunks; those of averaged fields are half as wide: their sums need registers.
    slots: most columns of ids of an averaged field.
    """

    meta: Tensor
    single: int
    averaged: int
    slots: int


def pairs(columns: Sequence[int]) -> list[tuple[int, int]]:
    """[start, stop, start, stop, …] → spans: torch.library knows no list of pairs."""
    return list(zip(columns[::2], columns[1::2], strict=True))


_captured: dict[int, Tensor] = {}  # by address: what CUDA graphs read, which must outlive the caches


def kept_if_captured(tensor: Tensor) -> Tensor:
    """The tensor, kept for the life of the process if a CUDA graph is being captured: replays read its memory."""
    if tensor.is_cuda and torch.cuda.is_current_stream_capturing():
        _captured[tensor.data_ptr()] = tensor
    return tensor


DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def check_inputs(
    ids: Tensor, tables: Sequence[Tensor], spans: Sequence[tuple[int, int]], weight: Tensor, bias: Tensor | None
) -> None:
    """Raises ValueError if the arguments of event_embedding do not fit each other."""
    _check_kinds(ids, tables, weight, bias)
    widths = sum(t.shape[1] for t in tables)
    if len(tables) != len(spans) or weight.shape[1] != widths or not tables:
        raise ValueError(
            f"{len(tables)} tables of total width {widths} do not fit {len(spans)} spans and weight "
            f"{tuple(weight.shape)}; give one span per table, at least one, and weight [M, {widths}]"
        )
    for start, stop in spans:
        if not 0 <= start < stop:
            raise ValueError(f"span {(start, stop)} is empty or starts below 0; spans are [start, stop)")
        if stop > ids.shape[1]:
            raise ValueError(f"spans {list(spans)} reach beyond the {ids.shape[1]} columns of ids")
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"bias {tuple(bias.shape)} does not fit weight {tuple(weight.shape)}; expected [M]")


def _check_kinds(ids: Tensor, tables: Sequence[Tensor], weight: Tensor, bias: Tensor | None) -> None:
    """Dimensions, devices and dtypes."""
    two = {"ids": ids, **{f"table {f}": t for f, t in enumerate(tables)}, "weight": weight}
    for name, value in two.items():
        if value.dim() != 2:
            raise ValueError(f"{name} is {tuple(value.shape)}; ids are [T, C], tables [V, E] and weight [M, E]")
    for name, value in two.items() if bias is None else {**two, "bias": bias}.items():
        if value.device != ids.device:
            raise ValueError(f"{name} is on {value.device}, ids are on {ids.device}; move them to one device")
    if ids.dtype != torch.int32:
        raise ValueError(f"ids are {ids.dtype}; expected int32, as ids.int() gives them")
    allowed = DTYPES if ids.is_cuda else (*DTYPES, torch.float64)
    dtypes = {t.dtype for t in tables}
    if len(dtypes) > 1 or not {weight.dtype, *dtypes} <= set(allowed):
        raise ValueError(
            f"tables are {', '.join(sorted(map(str, dtypes)))} and weight {weight.dtype}; expected one of "
            f"{', '.join(str(d).removeprefix('torch.') for d in allowed)}, the same for all tables"
        )
    if bias is not None and bias.dtype != weight.dtype:
        raise ValueError(
            f"bias is {bias.dtype} and weight {weight.dtype}; expected one dtype, as bias.to(weight.dtype)"
        )


def check_ids(ids: Tensor, sizes: Sequence[int], spans: Sequence[tuple[int, int]]) -> None:
    """Raises ValueError if a field of ids [T, C] on a CPU has an id outside its table of that many rows."""
    if torch.compiler.is_compiling():  # which knows no values
        return
    last = _last_ids(tuple(sizes), tuple(spans), ids.shape[1])
    if not ids.numel() or int((ids | (last - ids)).min()) >= 0:  # the sign of either
        return
    for size, (start, stop) in zip(sizes, spans, strict=True):
        low, high = (int(v) for v in ids[:, start:stop].aminmax())
        if low < 0 or high >= size:
            raise ValueError(f"id {low if low < 0 else high} in columns [{start}, {stop}) is outside [0, {size})")


@lru_cache(maxsize=256)
def _last_ids(sizes: tuple[int, ...], spans: tuple[tuple[int, int], ...], columns: int) -> Tensor:
    """int32 [C], the largest id of each column."""
    last = [2**31 - 1] * columns
    for size, (start, stop) in zip(sizes, spans, strict=True):
        last[start:stop] = [min(size - 1, i) for i in last[start:stop]]
    return torch.tensor(last, dtype=torch.int32)


def concatenation(ids: Tensor, tables: Sequence[Tensor], spans: Sequence[tuple[int, int]]) -> Tensor:
    """[T, E], in plain torch: what the kernels never write."""
    parts = []
    for table, (start, stop) in zip(tables, spans, strict=True):
        column = ids[:, start:stop]
        if stop - start == 1:
            parts.append(nnf.embedding(column[:, 0], table))
        else:
            parts.append(nnf.embedding_bag(column, table, mode="mean", padding_idx=0))
    return torch.cat(parts, dim=1)


def field_groups(
    tables: Sequence[Tensor], spans: Sequence[tuple[int, int]], starts: Sequence[int], chunk: int
) -> Groups:
    """tables: [V_f, E_f], E_f a multiple of 8, as `aligned` gives them. starts: each field's first column of the
    weight. chunk: columns that a kernel takes at once. Kept for the next call with the same tables."""
    base = lowest(tables).data_ptr()
    of_fields = tuple(
        (t.data_ptr() - base, *t.shape, *span, start) for t, span, start in zip(tables, spans, starts, strict=True)
    )
    groups = _groups(of_fields, tables[0].element_size(), chunk // WIDTH, tables[0].device)
    kept_if_captured(groups.meta)
    return groups


@lru_cache(maxsize=256)
def _groups(
    of_fields: tuple[tuple[int, int, int, int, int, int], ...], item: int, per_chunk: int, device: torch.device
) -> Groups:
    """of_fields: (bytes from the lowest table to this one, V_f, E_f, first and last id column, first weight column)."""
    if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        raise RuntimeError("event_embedding met new tables while a CUDA graph was captured; call it with them before")
    nothing = (0,) * FIELDS
    kinds: tuple[list[tuple[int, ...]], list[tuple[int, ...]]] = ([], [])
    for distance, rows, width, start, stop, at in of_fields:
        for column in range(0, width, WIDTH):
            group = (distance // item + column, width, rows, start, stop - start, at + column)
            kinds[stop - start > 1].append(group)
    meta, chunks = [], []
    for groups, size in zip(kinds, (per_chunk, per_chunk // 2), strict=True):
        chunks.append(ceil_div(len(groups), size))
        meta += [*groups, *[nothing] * (chunks[-1] * size - len(groups))]
    meta += [nothing] * per_chunk
    slots = max((stop - start for _, _, _, start, stop, _ in of_fields), default=1)
    return Groups(torch.tensor(meta, dtype=torch.int64, device=device), chunks[0], chunks[1], slots)


def lowest(tables: Sequence[Tensor]) -> Tensor:
    """The table of the lowest address. Kernels reach all others by their distance from it."""
    return min(tables, key=Tensor.data_ptr)


def aligned(table: Tensor) -> Tensor:
    """The table as the kernels read it: contiguous, at a multiple of 32 bytes, zeros up to a multiple of 8 columns.
    Copied only if it is not so already."""
    short = -table.shape[1] % WIDTH
    if short:
        return nnf.pad(table, (0, short))
    table = table.contiguous()
    return table.clone() if table.data_ptr() % ALIGNED else table


def padded_weight(weight: Tensor, tables: Sequence[Tensor]) -> Tensor:
    """weight [M, E] with zero columns where `aligned` adds columns to the tables."""
    if any(t.shape[1] % WIDTH for t in tables):
        parts = weight.split([t.shape[1] for t in tables], dim=1)
        weight = torch.cat([nnf.pad(p, (0, -p.shape[1] % WIDTH)) for p in parts], dim=1)
    return aligned(weight)


@jit()
def group_rows(IDS, META, group, slot, t, events, columns, LEAST: constexpr, GROUPS: constexpr):
    """Where the rows of events t [T] are: offsets int64 [T, GROUPS] from the lowest table, multiples of 8; −8 for ids
    below LEAST or beyond their table, which are not to be read."""
    known = META + (group + tl.arange(0, GROUPS)) * 6
    first = tl.load(known)
    width = tl.load(known + 1)
    rows = tl.load(known + 2)
    column = tl.load(known + 3) + slot
    listed = (t < events)[:, None] & (slot < tl.load(known + 4))[None, :]
    ids = tl.load(IDS + t.to(tl.int64)[:, None] * columns + column[None, :], mask=listed, other=-1).to(tl.int64)
    inside = (ids >= LEAST) & (ids < rows[None, :])
    return tl.where(inside, first[None, :] + ids * width[None, :], -8)


@jit()
def spread(offsets, ROWS: constexpr, GROUPS: constexpr):
    """Offsets of groups [ROWS, GROUPS] → of their columns [ROWS, 8 · GROUPS]."""
    wide = offsets[:, :, None] + tl.arange(0, 8)[None, None, :]
    wide = tl.reshape(wide, [ROWS, GROUPS * 8])
    # What the compiler needs to know for 16-byte loads, and for masks that are one for the whole group.
    return tl.max_contiguous(tl.multiple_of(wide, [1, 8]), [1, 8])


@jit()
def load_groups(TABLES, offsets, ROWS: constexpr, GROUPS: constexpr):
    """The columns of groups, [ROWS, 8 · GROUPS]; zeros where the offset is −8."""
    wide = spread(offsets, ROWS, GROUPS)
    return tl.load(TABLES + wide, mask=wide >= 0, other=0.0)


@jit()
def mean_groups(TABLES, IDS, META, group, slots, t, events, columns, ROWS: constexpr, GROUPS: constexpr):
    """Means of the rows of ids above 0 and in the table, float32 [ROWS, 8 · GROUPS]; zeros where there are none."""
    total = tl.zeros([ROWS, GROUPS * 8], tl.float32)
    count = tl.zeros([ROWS, GROUPS], tl.float32)
    for slot in tl.range(0, slots, num_stages=1):
        offsets = group_rows(IDS, META, group, slot, t, events, columns, 1, GROUPS)
        total += load_groups(TABLES, offsets, ROWS, GROUPS).to(tl.float32)
        count += (offsets >= 0).to(tl.float32)
    share = tl.broadcast_to((1.0 / tl.maximum(count, 1.0))[:, :, None], [ROWS, GROUPS, 8])
    return total * tl.reshape(share, [ROWS, GROUPS * 8])
