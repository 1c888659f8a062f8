"""catalogue_search: the exact k best of a whole catalogue for each query, by inner product.

On a GPU in three passes, none of which writes [Q, N]: the best score of each block of titles; the k blocks whose best
are highest; the titles of those blocks scored again, and the best k of them. Exact because each of the k best titles
lies in a block whose best is among the k highest (Dr. Top-k's delegates, Gaihre et al., SC 2021), given that ties
between blocks go to the lower one, as ties between titles do, and that both passes compute the same bits: they run the
same tile of queries and titles through the same instructions.

Shape letters: Q queries, N titles, D vector width, k kept.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .jit import (
    architecture,
    ceil_div,
    constexpr,
    contiguous,
    jit,
    next_power_of_2,
    on_its_device,
    one_device,
    shared_memory,
    tl,
)
from .products import inner_products
from .top_keys import (
    MAX_INDEX,
    MAX_KEEP,
    best,
    empty_answer,
    pack,
    pack_keys,
    top_keys_reference,
    top_keys_triton,
)

TITLE_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.int8, torch.float8_e4m3fn)
WIDEST = 1024  # a program holds whole title vectors, and float32 ones in registers too
WIDEST_FLOAT32 = 128
KEYS = 1 << 26  # of blocks and of their best, at once: 512 MB
CHUNK = 1 << 16  # titles per step of the torch path, and queries: 256 MB of scores
AT_ONCE = 1 << 10
PROGRAMS = 1024  # a few for each processor of a large GPU, so that the last ones to end are a small part


def catalogue_search(
    queries: Tensor,
    title_vectors: Tensor,
    k: int,
    *,
    scales: Tensor | None = None,
    bias: Tensor | None = None,
    exclude: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The k titles of highest inner product (times the title's scale, plus its bias) for each query.

    queries: [Q, D], floating point; rounded to the titles' type, to bfloat16 for int8 and float8_e4m3fn titles.
    title_vectors: [N, D], float32, bfloat16, float16, int8 or float8_e4m3fn. scales, bias: float32 [N].
    exclude: int32 [Q, ⌈N/32⌉] or [1, ⌈N/32⌉] for all queries alike; bit i % 32 of word i // 32 keeps title i out.
    See `exclusion_bits`.

    Returns (indices int64 [Q, k], scores float32 [Q, k]), best first; ties: higher score, then smaller index. Sums are
    float32. Where fewer than k titles are left, index −1 with score −inf. NaN scores count as −inf.
    Nothing here has gradients. Raises ValueError if shapes, dtypes or devices do not fit or k < 1.
    """
    fits = queries.dim() == title_vectors.dim() == 2 and queries.shape[1] == title_vectors.shape[1]
    if not fits:
        raise ValueError(
            f"queries {tuple(queries.shape)} and title_vectors {tuple(title_vectors.shape)} do not fit; expected "
            "[Q, D] and [N, D]"
        )
    count = title_vectors.shape[0]
    if k < 1:
        raise ValueError(f"k is {k}; it must be at least 1")
    if count > MAX_INDEX:
        raise ValueError(f"{count} titles; at most {MAX_INDEX}")
    if title_vectors.dtype not in TITLE_DTYPES or not queries.is_floating_point():
        raise ValueError(
            f"queries are {queries.dtype} and title_vectors {title_vectors.dtype}; expected floating point and one of "
            + ", ".join(str(d).removeprefix("torch.") for d in TITLE_DTYPES)
        )
    for name, value in (("scales", scales), ("bias", bias)):
        if value is not None and (tuple(value.shape) != (count,) or value.dtype != torch.float32):
            raise ValueError(f"{name} is {value.dtype} {tuple(value.shape)}; expected float32 ({count},)")
    words = ceil_div(count, 32)
    if exclude is not None and (
        exclude.dtype != torch.int32 or tuple(exclude.shape) not in ((queries.shape[0], words), (1, words))
    ):
        raise ValueError(
            f"exclude is {exclude.dtype} {tuple(exclude.shape)}; expected int32 ({queries.shape[0]}, {words}) or "
            f"(1, {words})"
        )
    one_device(queries, title_vectors, scales, bias, exclude)
    return torch.ops.frontrow.catalogue_search(queries.detach(), title_vectors.detach(), k, scales, bias, exclude)


def exclusion_bits(excluded: Tensor) -> Tensor:
    """bool [Q, N] → int32 [Q, ⌈N/32⌉], the form of `exclude`."""
    rows, count = excluded.shape
    padded = torch.nn.functional.pad(excluded, (0, -count % 32)).view(rows, -1, 32)
    weights = torch.ones(32, dtype=torch.int64, device=excluded.device) << torch.arange(32, device=excluded.device)
    return (padded * weights).sum(2).to(torch.int32)  # 2³¹ and above wrap to the same bits


@torch.library.custom_op("frontrow::catalogue_search", mutates_args=(), device_types="cpu")
def _op(
    queries: Tensor, title_vectors: Tensor, k: int, scales: Tensor | None, bias: Tensor | None, exclude: Tensor | None
) -> tuple[Tensor, Tensor]:
    return catalogue_search_reference(queries, title_vectors, k, scales, bias, exclude)


@_op.register_fake
def _shapes(queries: Tensor, title_vectors: Tensor, k: int, *_: Tensor | None) -> tuple[Tensor, Tensor]:
    shape = (queries.shape[0], k)
    return queries.new_empty(shape, dtype=torch.int64), queries.new_empty(shape, dtype=torch.float32)


def _compute_dtype(titles: Tensor) -> torch.dtype:
    """int8 and float8 values are exact in bfloat16."""
    return titles.dtype if titles.dtype.itemsize > 1 else torch.bfloat16


@on_its_device
def catalogue_search_reference(
    queries: Tensor,
    title_vectors: Tensor,
    k: int,
    scales: Tensor | None = None,
    bias: Tensor | None = None,
    exclude: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The op in torch on any device, a chunk of titles at a time. What CPUs run."""
    queries = queries.to(_compute_dtype(title_vectors)).float()
    if len(queries) > AT_ONCE:
        return _in_parts(catalogue_search_reference, AT_ONCE, queries, title_vectors, k, scales, bias, exclude)
    kept = queries.new_empty((len(queries), 0), dtype=torch.int64)
    for first in range(0, len(title_vectors), CHUNK):
        part = slice(first, min(first + CHUNK, len(title_vectors)))
        scores = inner_products(queries, title_vectors[part].float())
        if scales is not None:
            scores = scores * scales[part]
        if bias is not None:
            scores = scores + bias[part]
        indices = torch.arange(part.start, part.stop, device=queries.device)
        if exclude is not None:  # CHUNK is a multiple of 32
            bits = exclude[:, first // 32 : ceil_div(part.stop, 32), None] >> torch.arange(32, device=queries.device)
            out = (bits & 1).bool().flatten(1)[:, : scores.shape[1]]
            scores = scores.masked_fill(out, -torch.inf)
        kept = torch.cat([kept, pack_keys(scores, indices.expand_as(scores))], dim=1)
        kept = kept.topk(min(k, kept.shape[1]), dim=1).values
    return top_keys_reference(kept, k)


@_op.register_kernel("cuda")
@on_its_device
def catalogue_search_triton(
    queries: Tensor,
    title_vectors: Tensor,
    k: int,
    scales: Tensor | None = None,
    bias: Tensor | None = None,
    exclude: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The op's kernels; torch's matrix product and sort for many queries, very wide vectors or a large k."""
    (count, width), asked = title_vectors.shape, len(queries)
    if not _fits(title_vectors) or min(k, count) > MAX_KEEP:
        return catalogue_search_reference(queries, title_vectors, k, scales, bias, exclude)
    if not asked or not count:
        return empty_answer(queries, asked, k, 0)
    shape = _Shape(asked, title_vectors)
    chosen, keep = min(k, shape.blocks), min(next_power_of_2(min(k, count)), shape.rows)
    most = max(shape.queries, KEYS // (shape.blocks + chosen * keep))
    if asked > most:
        return _in_parts(catalogue_search_triton, most, queries, title_vectors, k, scales, bias, exclude)
    inputs = (
        queries.to(_compute_dtype(title_vectors)).contiguous(),
        title_vectors.contiguous(),
        contiguous(scales),
        contiguous(bias),
        None if exclude is None else exclude.contiguous(),
    )
    sizes = (asked, count, 0 if exclude is None or len(exclude) == 1 else exclude.shape[1])
    tile = {"WIDTH": width, "BLOCK": shape.block, "QUERIES_TILE": shape.queries, "ROWS": shape.rows}
    maxima = queries.new_empty((asked, shape.blocks), dtype=torch.int64)
    programs = (ceil_div(asked, shape.queries), ceil_div(shape.blocks, shape.each))
    _block_maxima[programs](
        *inputs, maxima, *sizes, shape.blocks, shape.each, **tile, num_warps=shape.warps, num_stages=shape.stages
    )
    blocks, _ = top_keys_triton(maxima, chosen)
    keys = queries.new_empty((asked, chosen * keep), dtype=torch.int64)
    _score_blocks[(chosen, asked)](*inputs, blocks, keys, *sizes, **tile, KEEP=keep, num_warps=shape.warps)
    return top_keys_triton(keys, k)


def _in_parts(
    search: Callable[..., tuple[Tensor, Tensor]], most: int, queries: Tensor, titles: Tensor, k: int,
    scales: Tensor | None, bias: Tensor | None, exclude: Tensor | None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The search for at most `most` queries at a time."""
    parts = queries.split(most)
    bits = [exclude] * len(parts) if exclude is None or len(exclude) == 1 else exclude.split(most)
    found = [search(q, titles, k, scales, bias, e) for q, e in zip(parts, bits, strict=True)]
    return torch.cat([indices for indices, _ in found]), torch.cat([scores for _, scores in found])


class _Shape:
    """How Q queries against N titles of width D are cut: titles in blocks of rows, queries in tiles."""

    def __init__(self, asked: int, titles: Tensor) -> None:
        count, width = titles.shape
        self.block = max(16, next_power_of_2(width))  # a tile's width; matrix units take no less than 16
        self.rows = min(128, max(16, (8192 if titles.dtype == torch.float32 else 32768) // self.block))
        self.queries = min(64, max(16, next_power_of_2(asked)))  # 16 columns are the fewest of a matrix instruction
        if titles.dtype == torch.float32 and width > 64:
            self.queries = 16
        limit = shared_memory() * 7 // 8  # what else the compiler puts there
        while self._bytes(titles, 2) > limit and self.queries > 16:
            self.queries //= 2
        while self._bytes(titles, 2) > limit and self.rows > 16:
            self.rows //= 2
        self.stages = 3 if self._bytes(titles, 3) <= limit else 2
        self.blocks = ceil_div(count, self.rows)
        self.each = ceil_div(self.blocks, PROGRAMS)  # blocks per program, loaded while others are multiplied
        # One-byte titles are widened in registers, and so are many queries' scores.
        self.warps = 8 if self.queries == 64 or titles.element_size() == 1 else 4

    def _bytes(self, titles: Tensor, stages: int) -> int:
        """Of shared memory: titles in flight, and the queries."""
        item = max(titles.element_size(), 2)
        return self.block * (stages * self.rows * titles.element_size() + self.queries * item)


def _fits(titles: Tensor) -> bool:
    if titles.dtype == torch.float8_e4m3fn and architecture() < 89:  # no such type there
        return False
    return titles.shape[1] <= (WIDEST_FLOAT32 if titles.dtype == torch.float32 else WIDEST)


@jit()
def _query_tile(QUERIES, first, asked, WIDTH: constexpr, BLOCK: constexpr, QUERIES_TILE: constexpr):
    """Vectors of the queries from `first`, as columns [BLOCK, QUERIES_TILE]."""
    query = first + tl.arange(0, QUERIES_TILE)
    column = tl.arange(0, BLOCK)
    inside = (column < WIDTH)[:, None] & (query < asked)[None, :]
    return tl.load(QUERIES + query.to(tl.int64)[None, :] * WIDTH + column[:, None], mask=inside, other=0.0)


@jit()
def _scores_of_block(
    vectors,
    TITLES,
    SCALES,
    BIAS,
    EXCLUDE,
    block,
    first,
    asked,
    count,
    words,
    WIDTH: constexpr,
    BLOCK: constexpr,
    QUERIES_TILE: constexpr,
    ROWS: constexpr,
):
    """Scores [ROWS, QUERIES_TILE] of a block of titles; −inf for what is excluded, NaN or beyond the catalogue."""
    title = block * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, BLOCK)
    inside = (title < count)[:, None] & (column < WIDTH)[None, :]
    rows = tl.load(TITLES + title.to(tl.int64)[:, None] * WIDTH + column[None, :], mask=inside, other=0.0)
    # float32: as three products of tensorfloat32 halves, which lose 2⁻²¹ of a product at most
    score = tl.dot(rows.to(vectors.dtype), vectors, input_precision="tf32x3")
    if SCALES is not None:
        score *= tl.load(SCALES + title, mask=title < count, other=0.0)[:, None]
    if BIAS is not None:
        score += tl.load(BIAS + title, mask=title < count, other=0.0)[:, None]
    valid = (title < count)[:, None] & (score == score)
    if EXCLUDE is not None:
        query = first + tl.arange(0, QUERIES_TILE)
        word = query.to(tl.int64)[None, :] * words + (title // 32)[:, None]
        bits = tl.load(EXCLUDE + word, mask=(title < count)[:, None] & (query < asked)[None, :], other=0)
        valid = valid & (((bits >> (title % 32)[:, None]) & 1) == 0)
    return tl.where(valid, score, float("-inf"))


@jit("asked", "count", "words", "blocks", "each")
def _block_maxima(
    QUERIES,
    TITLES,
    SCALES,
    BIAS,
    EXCLUDE,
    MAXIMA,
    asked,
    count,
    words,
    blocks,
    each,
    WIDTH: constexpr,
    BLOCK: constexpr,
    QUERIES_TILE: constexpr,
    ROWS: constexpr,
):
    first = tl.program_id(0) * QUERIES_TILE
    begin = tl.program_id(1) * each
    vectors = _query_tile(QUERIES, first, asked, WIDTH, BLOCK, QUERIES_TILE)
    query = first + tl.arange(0, QUERIES_TILE)
    for block in tl.range(begin, tl.minimum(begin + each, blocks)):
        score = _scores_of_block(
            vectors, TITLES, SCALES, BIAS, EXCLUDE, block, first, asked, count, words, WIDTH, BLOCK, QUERIES_TILE, ROWS
        )
        keys = pack(tl.max(score, axis=0), tl.zeros([QUERIES_TILE], tl.int32) + block, query < asked)
        tl.store(MAXIMA + query.to(tl.int64) * blocks + block, keys, mask=query < asked)


@jit("asked", "count", "words")
def _score_blocks(
    QUERIES,
    TITLES,
    SCALES,
    BIAS,
    EXCLUDE,
    BLOCKS,
    KEYS,
    asked,
    count,
    words,
    WIDTH: constexpr,
    BLOCK: constexpr,
    QUERIES_TILE: constexpr,
    ROWS: constexpr,
    KEEP: constexpr,
):
    chosen = tl.program_id(0)
    query = tl.program_id(1)
    place = query.to(tl.int64) * tl.num_programs(0) + chosen
    block = tl.load(BLOCKS + place).to(tl.int32)  # −1 where fewer blocks have anything to offer
    first = query // QUERIES_TILE * QUERIES_TILE
    vectors = _query_tile(QUERIES, first, asked, WIDTH, BLOCK, QUERIES_TILE)
    score = _scores_of_block(
        vectors, TITLES, SCALES, BIAS, EXCLUDE, tl.maximum(block, 0), first, asked, count, words, WIDTH, BLOCK,
        QUERIES_TILE, ROWS,
    )  # fmt: skip
    mine = (tl.arange(0, QUERIES_TILE) == query - first)[None, :]
    score = tl.max(tl.where(mine, score, float("-inf")), axis=1)
    keys = pack(score, tl.maximum(block, 0) * ROWS + tl.arange(0, ROWS), tl.zeros([ROWS], tl.int32) + block >= 0)
    if KEEP < ROWS:  # top_keys sorts anyway
        keys = best(keys, ROWS, KEEP)
    tl.store(KEYS + place * KEEP + tl.arange(0, KEEP), keys)
