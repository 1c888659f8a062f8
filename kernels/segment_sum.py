"""segment_sum: rows of values added up by key, in sorted order, the same bits from run to run.

Keys are sorted once (torch.sort, stable). A program takes a tile of sorted places and adds the rows of equal keys as a
product with the matrix of "same key", so that a tile costs the same whatever its keys. A key that ends in another tile
than it began in is finished by a second kernel, which adds the sums of its tiles in order. The grid depends on shapes
alone and a frequent key is spread over many tiles.

Shape letters: N places, W width, V rows of the result.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .jit import ceil_div, constexpr, jit, next_power_of_2, tl

TILE = 64  # sorted places of a program
JOINED = 64  # tiles whose sums are added at once


def segment_sum_triton(
    values: Tensor, keys: Tensor, shares: Tensor | None, size: int, dtype: torch.dtype, sparse: bool
) -> tuple[Tensor, Tensor | None]:
    """Sums of values [T, W] by keys: integers [N], N = T · slots; place i adds values[i // slots], times shares[i] if
    given. Keys outside [0, size) add to nothing.

    Returns (sums [size, W] of dtype, None), or if sparse (sums [N, W], rows int64 [N]): each row that occurs stands at
    one place with its sum, the other places hold zeros for row 0.
    """
    places, width = len(keys), values.shape[1]
    out = values.new_zeros(places if sparse else size, width, dtype=dtype)
    rows = keys.new_zeros(places, dtype=torch.int64) if sparse else None
    if not places or not width:
        return out, rows
    keys, order = torch.sort(keys, stable=True)
    cores = values.dtype != torch.float32
    tile_w = min(max(next_power_of_2(width), 16), 128 if cores else 32)
    tiles, across = ceil_div(places, TILE), ceil_div(width, tile_w)
    ends = values.new_empty(tiles, 2, width, dtype=torch.float32)
    _sum_tile[(tiles, across)](
        values.contiguous(), keys, order, shares, out, rows, ends, places, size, places // len(values), width,
        TILE=TILE, TILE_W=tile_w, num_warps=4 if cores else 8,  # on sm_80 4 would not have the registers for float32
    )  # fmt: skip
    if tiles > 1:
        narrow = min(tile_w, 64)
        _join_tiles[(tiles - 1, ceil_div(width, narrow))](
            keys, ends, out, places, size, width, SPARSE=sparse, TILE=TILE, JOINED=JOINED, TILE_W=narrow, num_warps=4
        )
    return out, rows


@jit("places", "size", "slots")
def _sum_tile(
    VALUES,
    KEYS,
    ORDER,
    SHARES,
    OUT,
    ROWS,
    ENDS,
    places,
    size,
    slots,
    width,
    TILE: constexpr,
    TILE_W: constexpr,
):
    tile = tl.program_id(0)
    w = tl.program_id(1) * TILE_W + tl.arange(0, TILE_W)
    near = tl.arange(0, TILE)
    place = tile * TILE + near
    inside = place < places
    key = tl.load(KEYS + place, mask=inside, other=-1)
    before = tl.load(KEYS + place - 1, mask=inside & (place > 0), other=-1)
    after = tl.load(KEYS + (tile + 1) * TILE, mask=(tile + 1) * TILE < places, other=-1)
    source = tl.load(ORDER + place, mask=inside, other=0)
    at = VALUES + (source // slots)[:, None] * width + w[None, :]
    rows = tl.load(at, mask=inside[:, None] & (w < width)[None, :], other=0.0)
    same = (key[:, None] == tl.trans(key[:, None])).to(tl.float32)
    if SHARES is not None:
        same *= tl.load(SHARES + source, mask=inside, other=0.0)[None, :]
    sums = tl.dot(same.to(rows.dtype), rows, input_precision="ieee")
    starts = inside & ((place == 0) | (key != before)) & (key >= 0) & (key < size)
    row = key.to(tl.int64)
    if ROWS is not None:
        row = place.to(tl.int64)
        tl.store(ROWS + place, key.to(tl.int64), mask=starts)  # the same from each program of the tile
    out = OUT + row[:, None] * width + w[None, :]
    tl.store(out, sums.to(OUT.dtype.element_ty), mask=(starts & (key != after))[:, None] & (w < width)[None, :])
    # The sums of the tile's first and last key, for those that go on in other tiles.
    end = tl.where(near == 0, 0, 1)
    ends = ENDS + (tile.to(tl.int64) * 2 + end)[:, None] * width + w[None, :]
    tl.store(ends, sums, mask=((near == 0) | (near == TILE - 1))[:, None] & (w < width)[None, :])


@jit("places", "size")
def _join_tiles(
    KEYS,
    ENDS,
    OUT,
    places,
    size,
    width,
    SPARSE: constexpr,
    TILE: constexpr,
    JOINED: constexpr,
    TILE_W: constexpr,
):
    tile = tl.program_id(0)
    w = tl.program_id(1) * TILE_W + tl.arange(0, TILE_W)
    place = tile * TILE + tl.arange(0, TILE)
    keys = tl.load(KEYS + place)  # every tile but the last, which has no program, is full
    last = tl.load(KEYS + (tile + 1) * TILE - 1)
    goes_on = tl.load(KEYS + (tile + 1) * TILE) == last
    begins = (tl.load(KEYS + tile * TILE - 1, mask=tile > 0, other=-1) != last) | (tile == 0)
    begins = begins | (tl.load(KEYS + tile * TILE) != last)
    if goes_on & begins & (last >= 0) & (last < size):
        total = tl.load(ENDS + (tile.to(tl.int64) * 2 + 1) * width + w, mask=w < width, other=0.0)
        next_tile = tile + 1
        more = True
        while more:
            joined = next_tile + tl.arange(0, JOINED)
            here = tl.load(KEYS + joined.to(tl.int64) * TILE, mask=joined * TILE < places, other=-1) == last
            ends = ENDS + joined.to(tl.int64)[:, None] * 2 * width + w[None, :]
            total += tl.sum(tl.load(ends, mask=here[:, None] & (w < width)[None, :], other=0.0), axis=0)
            next_tile += JOINED
            more = tl.min(here.to(tl.int32), axis=0) == 1
        row = last.to(tl.int64)
        if SPARSE:
            row = tl.min(tl.where(keys == last, place, places), axis=0).to(tl.int64)
        tl.store(OUT + row * width + w, total.to(OUT.dtype.element_ty), mask=w < width)
