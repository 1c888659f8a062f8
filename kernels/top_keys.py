"""top_keys: the k largest packed keys of each row, as indices and scores.

A key holds a score and an index in one int64: the float's bits, made to sort like the float, above 2³¹−1 − index. So
one comparison ranks by score and breaks ties by the smaller index, whatever the order of reduction: results are the
same from run to run and from device to device. NONE, the smallest key, stands for nothing.

Shape letters: R rows, C keys per row, k kept.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .jit import ceil_div, constexpr, jit, next_power_of_2, on_its_device, tl

NONE = -(1 << 63)
MAX_INDEX = 0x7FFFFFFF
# A program sorts at most this many keys (8 warps: 16 registers each thread for 2048); beyond MAX_KEEP torch sorts.
TILE = 2048
MAX_KEEP = 1024


def pack_keys(scores: Tensor, indices: Tensor) -> Tensor:
    """scores float32 and indices int64 in [0, 2³¹) of one shape → int64 keys. NaN, −inf and index < 0 give NONE."""
    bits = (scores + 0.0).view(torch.int32)  # + 0.0 makes −0.0 and 0.0 one score
    keys = torch.empty(scores.shape, dtype=torch.int64, device=scores.device)
    halves = keys.view(torch.int32).view(*keys.shape, 2)  # the lower half comes first
    torch.bitwise_xor(bits, (bits >> 31) & MAX_INDEX, out=halves[..., 1])
    halves[..., 0] = MAX_INDEX - indices
    return keys.masked_fill_((indices < 0) | ~(scores > -torch.inf), NONE)


def unpack_keys(keys: Tensor) -> tuple[Tensor, Tensor]:
    """int64 keys → (indices int64, scores float32); NONE gives −1 and −inf."""
    ordered = (keys >> 32).to(torch.int32)
    scores = (ordered ^ ((ordered >> 31) & MAX_INDEX)).view(torch.float32)
    none = keys == NONE
    return (MAX_INDEX - (keys & 0xFFFFFFFF)).masked_fill_(none, -1), scores.masked_fill_(none, -torch.inf)


def top_keys(keys: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest of each row of int64 keys [R, C] → (indices int64 [R, k], scores float32 [R, k]), best first.

    Where a row has fewer than k keys that are not NONE, index −1 with score −inf.
    """
    return top_keys_triton(keys, k) if keys.is_cuda else top_keys_reference(keys, k)


def top_keys_reference(keys: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Plain torch with the same signature: the definition of the op."""
    best = keys.topk(min(k, keys.shape[1]), dim=1).values
    if k > keys.shape[1]:
        best = torch.cat([best, best.new_full((len(best), k - best.shape[1]), NONE)], dim=1)
    return unpack_keys(best)


@on_its_device
def top_keys_triton(keys: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Tiles of each row are reduced to their best until one tile is left."""
    rows, count = keys.shape
    keep = next_power_of_2(min(k, count))
    if keep > MAX_KEEP:
        return top_keys_reference(keys, k)
    keys = keys.contiguous()
    while count > TILE:
        tiles = ceil_div(count, TILE)
        best = keys.new_empty(rows, tiles * keep)
        _best_of_tile[(rows * tiles,)](keys, best, count, tiles, TILE=TILE, KEEP=keep, num_warps=8)
        keys, count = best, tiles * keep
    indices, scores = empty_answer(keys, rows, k, count)
    if rows and count:
        tile = max(next_power_of_2(count), keep, 2)
        _best_of_row[(rows,)](keys, indices, scores, count, k, TILE=tile, KEEP=keep, num_warps=4 if tile <= 1024 else 8)
    return indices, scores


def empty_answer(like: Tensor, rows: int, k: int, count: int) -> tuple[Tensor, Tensor]:
    """Where a kernel writes (indices, scores) [rows, k]; filled with "nothing" if it will not write each of them."""
    shape = (rows, k)
    if count and k <= next_power_of_2(count):
        return like.new_empty(shape, dtype=torch.int64), like.new_empty(shape, dtype=torch.float32)
    return like.new_full(shape, -1, dtype=torch.int64), like.new_full(shape, -torch.inf, dtype=torch.float32)


@jit()
def pack(score, index, valid):
    """pack_keys on the device: float32 scores and indices, NONE where not valid, NaN or −inf."""
    bits = (score + 0.0).to(tl.int32, bitcast=True)
    ordered = tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits).to(tl.int64)
    key = (ordered << 32) | (0x7FFFFFFF - index.to(tl.int64))
    return tl.where(valid & (score > float("-inf")), key, -0x7FFFFFFFFFFFFFFF - 1)


@jit()
def best(keys, TILE: constexpr, KEEP: constexpr):
    """The KEEP largest of TILE keys, in falling order."""
    # tl.topk of one key does not compile before Triton 3.9, and of all keys it is a sort.
    if KEEP == TILE:
        found = tl.sort(keys, descending=True)
    elif KEEP == 1:
        found = tl.max(keys, axis=0, keep_dims=True)
    else:
        found = tl.topk(keys, KEEP)
    return found


@jit()
def store_answer(keys, INDICES, SCORES, row, k, KEEP: constexpr):
    """Unpacked keys [KEEP] → the row's first k places."""
    place = tl.arange(0, KEEP)
    none = keys == -0x7FFFFFFFFFFFFFFF - 1
    ordered = (keys >> 32).to(tl.int32)
    bits = tl.where(ordered < 0, ordered ^ 0x7FFFFFFF, ordered)
    score = tl.where(none, float("-inf"), bits.to(tl.float32, bitcast=True))
    index = tl.where(none, -1, 0x7FFFFFFF - (keys & 0xFFFFFFFF))
    tl.store(INDICES + row * k + place, index, mask=place < k)
    tl.store(SCORES + row * k + place, score, mask=place < k)


@jit("count", "tiles")
def _best_of_tile(KEYS, BEST, count, tiles, TILE: constexpr, KEEP: constexpr):
    row = (tl.program_id(0) // tiles).to(tl.int64)
    tile = tl.program_id(0) % tiles
    place = tile * TILE + tl.arange(0, TILE)
    keys = tl.load(KEYS + row * count + place, mask=place < count, other=-0x7FFFFFFFFFFFFFFF - 1)
    out = tl.program_id(0).to(tl.int64) * KEEP + tl.arange(0, KEEP)
    tl.store(BEST + out, best(keys, TILE, KEEP))


@jit("count", "k")
def _best_of_row(KEYS, INDICES, SCORES, count, k, TILE: constexpr, KEEP: constexpr):
    row = tl.program_id(0).to(tl.int64)
    place = tl.arange(0, TILE)
    keys = tl.load(KEYS + row * count + place, mask=place < count, other=-0x7FFFFFFFFFFFFFFF - 1)
    store_answer(best(keys, TILE, KEEP), INDICES, SCORES, row, k, KEEP)
