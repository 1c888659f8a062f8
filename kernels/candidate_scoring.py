"""candidate_scoring: dot product of member vectors with their candidates, best k of each list.

On a GPU a program scores a tile of one list and keeps the tile's best as packed keys; lists of more than one tile are
merged by top_keys. The gathered vectors [B, K, D] never reach device memory; of the scores, what a tile keeps.

Shape letters: B members, R lists (R = B unless `members` says otherwise), K candidates per list, N titles, D vector
width, k kept.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import torch
from torch import Tensor

from .jit import architecture, ceil_div, constexpr, contiguous, jit, next_power_of_2, on_its_device, one_device, tl
from .products import inner_products
from .top_keys import (
    MAX_INDEX,
    NONE,
    best,
    empty_answer,
    pack,
    pack_keys,
    store_answer,
    top_keys_reference,
    top_keys_triton,
)

faiss: Any = None
with suppress(ImportError):
    import faiss

TITLE_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.int8, torch.float8_e4m3fn)
PROGRAMS = 512  # with fewer tiles of 128 a large GPU (132 processors, several programs each) is not full
LOADED = 8192  # elements of title vectors that a program has in flight; half of one-byte ones, which are widened
DENSE = 16
STEP = 4096  # candidates gathered at once by the torch path


def candidate_scoring(
    member_vectors: Tensor,
    title_vectors: Tensor,
    candidates: Tensor,
    k: int,
    *,
    offsets: Tensor | None = None,
    longest: int | None = None,
    members: Tensor | None = None,
    scales: Tensor | None = None,
    bias: Tensor | None = None,
    exclude: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The k best of each list of candidates by dot product (times the title's scale, plus its bias).

    member_vectors: [B, D], float32, bfloat16 or float16. title_vectors: [N, D], those or int8 or float8_e4m3fn.
    candidates: int32 or int64, indices into title_vectors, −1 pads; [R, K], or with `offsets` [L]: list r is
    candidates[offsets[r] : offsets[r + 1]].
    offsets: int64 [R + 1], rising from 0 to L. longest: no list is longer; without it a GPU is waited for to find out,
    and torch.export refuses.
    members: int64 [R], whose list it is, an index into member_vectors; without it list r is member r's.
    scales, bias: float32 [N]. exclude: bool, shaped as candidates; True is never returned. All on one device.
    Member vectors are multiplied as they are, while catalogue_search rounds its queries to the titles' type: where both
    must agree, cast them first. Nothing here has gradients.

    Returns (indices int64 [R, k], scores float32 [R, k]), best first; ties: higher score, then smaller index. Sums are
    float32. A candidate listed twice is returned twice. Where fewer than k are left, index −1 with score −inf. NaN
    scores count as −inf. The same inputs give the same bits from run to run on one device.
    Raises ValueError if shapes, dtypes or devices do not fit or k < 1, and on CPU for an index outside [−1, N), a
    member outside [0, B), offsets that fall and a list longer than `longest`; on a GPU, where looking would cost a
    synchronisation, such an index counts as −1, and what lies beyond `longest` is not looked at.
    """
    _check(member_vectors, title_vectors, candidates, k, offsets, members, scales, bias, exclude)
    if offsets is None:
        longest = candidates.shape[1]
    elif longest is None:
        longest = int(offsets.diff().max()) if offsets.shape[0] > 1 else 0
    return torch.ops.frontrow.candidate_scoring(
        member_vectors.detach(), title_vectors.detach(), candidates, k, longest, offsets, members, scales, bias, exclude
    )


def _check(
    member_vectors: Tensor,
    title_vectors: Tensor,
    candidates: Tensor,
    k: int,
    offsets: Tensor | None,
    members: Tensor | None,
    scales: Tensor | None,
    bias: Tensor | None,
    exclude: Tensor | None,
) -> None:
    lists = candidates.shape[0] if offsets is None else offsets.shape[0] - 1
    dims = 2 if offsets is None else 1
    fits = member_vectors.dim() == title_vectors.dim() == 2 and candidates.dim() == dims
    fits = fits and member_vectors.shape[1] == title_vectors.shape[1]
    if not fits or (members is None and lists != member_vectors.shape[0]):
        raise ValueError(
            f"member_vectors {tuple(member_vectors.shape)}, title_vectors {tuple(title_vectors.shape)}, candidates "
            f"{tuple(candidates.shape)} and {lists} lists do not fit; expected [B, D], [N, D] and [R, K], or with "
            "offsets [L]; lists that are not one per member need `members`"
        )
    if k < 1:
        raise ValueError(f"k is {k}; it must be at least 1")
    if title_vectors.shape[0] > MAX_INDEX:
        raise ValueError(f"{title_vectors.shape[0]} titles; at most {MAX_INDEX}")
    if title_vectors.dtype not in TITLE_DTYPES or not member_vectors.is_floating_point():
        raise ValueError(
            f"member_vectors are {member_vectors.dtype} and title_vectors {title_vectors.dtype}; expected floating "
            f"point and one of {', '.join(str(d).removeprefix('torch.') for d in TITLE_DTYPES)}"
        )
    if candidates.dtype not in (torch.int32, torch.int64):
        raise ValueError(f"candidates are {candidates.dtype}; expected int32 or int64")
    for name, value, shape, dtype in (
        ("offsets", offsets, (lists + 1,), torch.int64),
        ("members", members, (lists,), torch.int64),
        ("scales", scales, (title_vectors.shape[0],), torch.float32),
        ("bias", bias, (title_vectors.shape[0],), torch.float32),
        ("exclude", exclude, tuple(candidates.shape), torch.bool),
    ):
        if value is not None and (tuple(value.shape) != shape or value.dtype != dtype):
            raise ValueError(f"{name} is {value.dtype} {tuple(value.shape)}; expected {dtype} {shape}")
    one_device(member_vectors, title_vectors, candidates, offsets, members, scales, bias, exclude)


def _check_values(
    candidates: Tensor, titles: int, vectors: int, longest: int, offsets: Tensor | None, members: Tensor | None
) -> bool:
    """What costs a look at the values: on a CPU only. Returns whether there is a −1 among the candidates."""
    padded = _check_range("candidate", candidates, -1, titles) < 0
    if members is not None:
        _check_range("member", members, 0, vectors)
    if offsets is not None and (
        int(offsets[0]) != 0 or int(offsets[-1]) != len(candidates) or bool((offsets.diff() < 0).any())
    ):
        raise ValueError(f"offsets {offsets.tolist()[:8]}… must rise from 0 to {len(candidates)}")
    if offsets is not None and len(offsets) > 1 and int(offsets.diff().max()) > longest:
        raise ValueError(f"longest is {longest}, but a list has {int(offsets.diff().max())} candidates")
    return padded


def _check_range(what: str, values: Tensor, low: int, high: int) -> int:
    """The least of the values, all of which must lie in [low, high)."""
    if not values.numel():
        return low
    least, most = (int(v) for v in values.aminmax())
    if least < low or most >= high:
        raise ValueError(f"{what} {least if least < low else most} is outside [{low}, {high})")
    return least


OP = "frontrow::candidate_scoring"
torch.library.define(
    OP,
    "(Tensor member_vectors, Tensor title_vectors, Tensor candidates, SymInt k, SymInt longest, Tensor? offsets, "
    "Tensor? members, Tensor? scales, Tensor? bias, Tensor? exclude) -> (Tensor, Tensor)",
)


def _cpu(
    member_vectors: Tensor,
    title_vectors: Tensor,
    candidates: Tensor,
    k: int,
    longest: int,
    offsets: Tensor | None,
    members: Tensor | None,
    scales: Tensor | None,
    bias: Tensor | None,
    exclude: Tensor | None,
) -> tuple[Tensor, Tensor]:
    padded = _check_values(candidates, len(title_vectors), len(member_vectors), longest, offsets, members)
    return candidate_scoring_reference(
        member_vectors, title_vectors, candidates, k, longest, offsets, members, scales, bias, exclude, padded
    )


def _shapes(
    member_vectors: Tensor,
    title_vectors: Tensor,
    candidates: Tensor,
    k: int,
    longest: int,
    offsets: Tensor | None,
    *_: Tensor | None,
) -> tuple[Tensor, Tensor]:
    lists = candidates.shape[0] if offsets is None else offsets.shape[0] - 1  # len() would fix a symbolic size
    return candidates.new_empty(lists, k, dtype=torch.int64), candidates.new_empty(lists, k, dtype=torch.float32)


@on_its_device
def candidate_scoring_reference(
    member_vectors: Tensor,
    title_vectors: Tensor,
    candidates: Tensor,
    k: int,
    longest: int,
    offsets: Tensor | None = None,
    members: Tensor | None = None,
    scales: Tensor | None = None,
    bias: Tensor | None = None,
    exclude: Tensor | None = None,
    padded: bool = True,
) -> tuple[Tensor, Tensor]:
    """The op in torch on any device: all scores, packed, sorted. What CPUs run. Not padded: no candidate is −1."""
    lists = len(candidates) if offsets is None else len(offsets) - 1
    candidates = candidates.to(torch.int64)
    safe = candidates.clamp(min=0) if padded else candidates
    if not candidates.numel() or not len(title_vectors):
        keys = candidates.new_full((lists, longest), NONE)
        return top_keys_reference(keys, k)
    vectors = member_vectors.float()
    if offsets is not None:
        rows = torch.arange(lists, device=safe.device) if members is None else members
        scores = _scores(vectors, title_vectors, rows.repeat_interleave(offsets.diff()), safe)
    else:
        scores = _padded_scores(vectors if members is None else vectors[members], title_vectors, safe)
    if scales is not None:
        scores = scores * scales[safe]
    if bias is not None:
        scores = scores + bias[safe]
    if exclude is not None:
        candidates, padded = candidates.masked_fill(exclude, -1), True
    if offsets is None:
        return _best(scores, candidates, k, padded)
    inside = torch.arange(longest, device=scores.device) < offsets.diff()[:, None]
    keys = candidates.new_full(inside.shape, NONE).masked_scatter(inside, pack_keys(scores, candidates))
    return top_keys_reference(keys, k)


def _best(scores: Tensor, candidates: Tensor, k: int, padded: bool) -> tuple[Tensor, Tensor]:
    """top_keys of the scores [R, K]. On a CPU torch ranks them where no two of the best are equal: keys cost more."""
    if scores.device.type == "cpu" and k < scores.shape[1]:
        if padded:
            scores = scores.masked_fill(candidates < 0, -torch.inf)
        values, place = scores.topk(k + 1, dim=1)
        if bool((values[:, :-1] > values[:, 1:]).all()):  # false of NaN and of several −inf too
            return candidates.gather(1, place[:, :k]), values[:, :k].contiguous()
    return top_keys_reference(pack_keys(scores, candidates), k)


def _padded_scores(members: Tensor, titles: Tensor, columns: Tensor) -> Tensor:
    """members [R, D] · titles[columns [R, K]] in float32, [R, K]."""
    if _dense_pays(members, titles, columns):
        return inner_products(members, titles.float()).gather(1, columns)
    if _faiss_takes(titles):
        members, titles, columns = members.contiguous(), titles.contiguous(), columns.contiguous()
        scores = members.new_empty(columns.shape)
        pointers = [faiss.swig_ptr(t.numpy()) for t in (scores, members, titles, columns)]
        faiss.fvec_inner_products_by_idx(*pointers, members.shape[1], *columns.shape)
        return scores
    step = max(1, STEP // columns.shape[1])
    parts = zip(members[:, None].split(step), columns.split(step), strict=True)
    return torch.cat([torch.linalg.vecdot(m, titles[c].float()) for m, c in parts])


def _scores(members: Tensor, titles: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """members[rows [L]] · titles[columns [L]] in float32, [L]."""
    if _dense_pays(members, titles, columns):
        return inner_products(members, titles.float())[rows, columns]
    if _faiss_takes(titles):
        members, titles = members.contiguous(), titles.contiguous()
        scores = members.new_empty(columns.shape)
        inputs = (members, rows.contiguous(), titles, columns.contiguous(), scores)
        pointers = [faiss.swig_ptr(t.numpy()) for t in inputs]
        faiss.pairwise_indexed_inner_product(members.shape[1], columns.numel(), *pointers)
        return scores
    parts = zip(rows.split(STEP), columns.split(STEP), strict=True)
    return torch.cat([torch.linalg.vecdot(members[r], titles[c].float()) for r, c in parts])


def _dense_pays(members: Tensor, titles: Tensor, columns: Tensor) -> bool:
    """Whether to multiply everything and then pick: a gathered product costs as much as about 16 dense ones."""
    return len(members) * len(titles) <= DENSE * columns.numel()


def _faiss_takes(titles: Tensor) -> bool:
    """FAISS multiplies gathered rows without a copy of them, several times faster than torch's two steps."""
    return faiss is not None and titles.device.type == "cpu" and titles.dtype == torch.float32


@on_its_device
def candidate_scoring_triton(
    member_vectors: Tensor,
    title_vectors: Tensor,
    candidates: Tensor,
    k: int,
    longest: int,
    offsets: Tensor | None = None,
    members: Tensor | None = None,
    scales: Tensor | None = None,
    bias: Tensor | None = None,
    exclude: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The op's kernel: a tile of a list per program, then top_keys where lists are longer than a tile."""
    lists = len(candidates) if offsets is None else len(offsets) - 1
    width = title_vectors.shape[1]
    if not lists or not longest or not len(title_vectors):
        return empty_answer(candidates, lists, k, 0)
    if title_vectors.dtype == torch.float8_e4m3fn and architecture() < 89:  # no such type there
        title_vectors = title_vectors.to(torch.bfloat16)
    tile = _tile(lists, longest)
    tiles = ceil_div(longest, tile)
    kept = next_power_of_2(min(k, longest))
    block = next_power_of_2(width)
    loaded = LOADED if title_vectors.dtype.itemsize > 1 else LOADED // 2
    if tiles == 1:
        tile = max(next_power_of_2(longest), 2)
        indices, scores = empty_answer(candidates, lists, k, longest)
        keys = indices
    else:
        kept = min(kept, tile)
        keys = candidates.new_empty((lists, tiles * kept), dtype=torch.int64)
        indices = scores = keys
    _score_tile[(lists * tiles,)](  # one axis: the others of a grid end at 65535
        member_vectors.contiguous(), title_vectors.contiguous(), candidates.contiguous(), keys, indices, scores,
        contiguous(offsets), contiguous(members), contiguous(scales), contiguous(bias),
        None if exclude is None else exclude.contiguous().view(torch.uint8),
        len(title_vectors), len(member_vectors), candidates.numel(), longest, tiles, k,
        WIDTH=width, TILE=tile, BLOCK=min(block, max(16, loaded // tile)), KEEP=kept, LAST=tiles == 1,
        num_warps=4 if tile >= 64 else 2,
    )  # fmt: skip
    return (indices, scores) if tiles == 1 else top_keys_triton(keys, k)


def _tile(lists: int, longest: int) -> int:
    """Candidates per program: few where there are few lists, so that every processor has some."""
    return 128 if lists * longest >= 128 * PROGRAMS else 32


torch.library.impl(OP, "CPU", _cpu)
torch.library.impl(OP, "CUDA", candidate_scoring_triton)
torch.library.register_fake(OP, _shapes)


@jit("titles", "vectors", "total", "longest", "tiles", "k")
def _score_tile(
    MEMBERS,
    TITLES,
    CANDIDATES,
    KEYS,
    INDICES,
    SCORES,
    OFFSETS,
    MEMBER_OF,
    SCALES,
    BIAS,
    EXCLUDE,
    titles,
    vectors,
    total,
    longest,
    tiles,
    k,
    WIDTH: constexpr,
    TILE: constexpr,
    BLOCK: constexpr,
    KEEP: constexpr,
    LAST: constexpr,
):
    row = (tl.program_id(0) // tiles).to(tl.int64)
    tile = tl.program_id(0) % tiles
    start = row * longest
    count = longest
    if OFFSETS is not None:
        start = tl.load(OFFSETS + row)
        count = (tl.load(OFFSETS + row + 1) - start).to(tl.int32)
    member = row
    if MEMBER_OF is not None:
        member = tl.load(MEMBER_OF + row)
    # What lies outside is not read: lists of members that do not exist, and places that do not.
    known = (member >= 0) & (member < vectors) & (start >= 0)
    count = tl.where(known, tl.minimum(count, total - start), 0)
    member = tl.where(known, member, 0)
    place = tile * TILE + tl.arange(0, TILE)
    listed = place < count
    index = tl.load(CANDIDATES + start + place, mask=listed, other=-1)
    valid = (index >= 0) & (index < titles)
    if EXCLUDE is not None:
        valid = valid & (tl.load(EXCLUDE + start + place, mask=listed, other=1) == 0)
    index = tl.where(valid, index, 0).to(tl.int64)
    score = tl.zeros([TILE], tl.float32)
    for first in tl.range(0, WIDTH, BLOCK):
        column = first + tl.arange(0, BLOCK)
        vector = tl.load(MEMBERS + member * WIDTH + column, mask=column < WIDTH, other=0.0).to(tl.float32)
        inside = valid[:, None] & (column < WIDTH)[None, :]
        rows = tl.load(TITLES + index[:, None] * WIDTH + column[None, :], mask=inside, other=0.0)
        score += tl.sum(rows.to(tl.float32) * vector[None, :], axis=1)
    if SCALES is not None:
        score *= tl.load(SCALES + index, mask=valid, other=0.0)
    if BIAS is not None:
        score += tl.load(BIAS + index, mask=valid, other=0.0)
    keys = pack(score, index, valid)
    if LAST:
        store_answer(best(keys, TILE, KEEP), INDICES, SCORES, row, k, KEEP)
    else:
        if KEEP < TILE:  # top_keys sorts anyway
            keys = best(keys, TILE, KEEP)
        tl.store(KEYS + tl.program_id(0).to(tl.int64) * KEEP + tl.arange(0, KEEP), keys)
