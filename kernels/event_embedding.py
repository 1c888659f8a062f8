"""event_embedding: gather one row per field, pool multi-valued fields, concatenate, project.

On a GPU the concatenation exists only as tiles in shared memory: chunks of it are gathered from the tables with
asynchronous copies while the tensor cores multiply the chunks before. A position or a time bucket is a field like any
other. The gradients are in event_embedding_backward, the form for inference on a CPU in folded_embedding.

Shape letters: T events, C columns of encoded ids, F fields, E = Σ table widths, M d_model.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import torch
import torch.nn.functional as nnf
from torch import Tensor

from .event_embedding_backward import event_embedding_backward, large
from .field_groups import (
    WIDTH,
    aligned,
    check_ids,
    check_inputs,
    concatenation,
    field_groups,
    group_rows,
    load_groups,
    lowest,
    mean_groups,
    padded_weight,
    pairs,
    spread,
)
from .jit import architecture, ceil_div, constexpr, contiguous, jit, next_power_of_2, on_its_device, tl

Spans = Sequence[tuple[int, int]]


def event_embedding(
    ids: Tensor,
    tables: Sequence[Tensor],
    spans: Spans,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    sparse: bool = False,
) -> Tensor:
    """Embed events of F fields and project them to M.

    ids: int32 [T, C], 0 is absent. tables: F tensors [V_f, E_f]; row 0 is used as it is for a field of one column.
    spans: per field its columns [start, stop) of ids; a field of several columns is the mean of its rows that are
    not 0, and zeros where all are 0. weight: [M, E] with fields in order; bias: [M].
    The tables are of one dtype, weight and bias of one: float32, bfloat16 or float16. Rows are cast to the weight's,
    which is the result's; under autocast that is autocast's. A CPU takes float64 too. On a GPU sums are float32, and
    float32 products are not rounded.
    sparse: tables of more than 512 rows get gradients as sparse COO tensors, of one entry for each id of the batch,
    uncoalesced; otherwise gradients are dense, which is what a table needs that others use densely too, and AdamW.
    NaN or infinity in a row reaches the events that have its id, and no others; in weight or bias, every event. What
    they do to gradients: event_embedding_backward. Gradients are of reverse mode and first order.
    Returns [T, M]. Raises ValueError if ids, tables, spans, weight and bias do not fit each other in shape, dtype or
    device, and on CPU for an id that its table lacks; on a GPU, where looking would cost a synchronisation, such an id
    is a row of zeros in a field of one column, and in an averaged field it is not counted, as 0 is not.
    """
    check_inputs(ids, tables, spans, weight, bias)
    if torch.is_autocast_enabled(ids.device.type):
        dtype = torch.get_autocast_dtype(ids.device.type)
        weight, bias = weight.to(dtype), None if bias is None else bias.to(dtype)
    columns = [column for span in spans for column in span]
    return torch.ops.frontrow.event_embedding(ids, list(tables), columns, weight, bias, sparse)


@torch.library.custom_op("frontrow::event_embedding", mutates_args=(), device_types="cpu")
def _op(
    ids: Tensor, tables: Sequence[Tensor], columns: Sequence[int], weight: Tensor, bias: Tensor | None, sparse: bool
) -> Tensor:
    check_ids(ids, [len(t) for t in tables], pairs(columns))
    return event_embedding_reference(ids, tables, pairs(columns), weight, bias)


@_op.register_fake
def _shape(ids: Tensor, tables: Any, columns: Any, weight: Tensor, bias: Any, sparse: bool) -> Tensor:
    return weight.new_empty(ids.shape[0], weight.shape[0])


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ids, tables, ctx.columns, weight, bias, ctx.sparse = inputs
    ctx.with_bias = bias is not None
    ctx.save_for_backward(ids, weight, *tables)


def _backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    ids, weight, *tables = ctx.saved_tensors
    found = event_embedding_backward(grad, ids, tables, ctx.columns, weight, ctx.sparse)
    of_tables, of_weight, of_bias, rows = found[: len(tables)], *found[len(tables) :][:2], found[len(tables) + 2 :]
    for f, index in zip(large(tables), rows, strict=False):
        of_tables[f] = torch.sparse_coo_tensor(index[None], of_tables[f], tables[f].shape, check_invariants=False)
    return None, of_tables, None, of_weight, of_bias if ctx.with_bias else None, None


_op.register_autograd(_backward, setup_context=_save)


def event_embedding_reference(
    ids: Tensor, tables: Sequence[Tensor], spans: Spans, weight: Tensor, bias: Tensor | None = None
) -> Tensor:
    """Plain torch with the same signature: the definition of the op, and what CPUs run."""
    return nnf.linear(concatenation(ids, tables, spans).to(weight.dtype), weight, bias)


@_op.register_kernel("cuda")
def _cuda(
    ids: Tensor, tables: Sequence[Tensor], columns: Sequence[int], weight: Tensor, bias: Tensor | None, sparse: bool
) -> Tensor:
    return event_embedding_triton(ids, tables, pairs(columns), weight, bias)


@on_its_device
def event_embedding_triton(
    ids: Tensor, tables: Sequence[Tensor], spans: Spans, weight: Tensor, bias: Tensor | None = None
) -> Tensor:
    """The op's kernel: a tile of the result per program."""
    events, model = len(ids), len(weight)
    out = weight.new_empty(events, model)
    if not out.numel():
        return out
    weight = padded_weight(weight, tables)
    tables = [aligned(t) for t in tables]
    starts = [0, *accumulate(t.shape[1] for t in tables)][:-1]
    # Tensor cores want large tiles, and before sm_90 the operands take registers too. float32 products have neither.
    cores = weight.dtype != torch.float32
    chunk = 64 if cores and tables[0].element_size() == 2 else 32
    tile = 128 if cores else 64
    tile_m = min(max(next_power_of_2(model), 16), 64 if not cores else 256 if architecture() >= 90 else 128)
    groups = field_groups(tables, spans, starts, chunk)
    _project[(ceil_div(events, tile) * ceil_div(model, tile_m),)](
        ids.contiguous(),
        lowest(tables),
        groups.meta,
        weight,
        contiguous(bias),
        out,
        events,
        ids.shape[1],
        groups.single,
        groups.averaged,
        groups.slots,
        model,
        weight.shape[1],
        AVERAGED=groups.averaged > 0,
        TILE=tile,
        TILE_M=tile_m,
        GROUPS=chunk // WIDTH,
        HALF=chunk // WIDTH // 2,
        num_warps=8 if cores and tile_m > 64 else 4,
        num_stages=3,
    )
    return out


@jit("events", "columns", "single", "averaged", "slots")
def _project(
    IDS,
    TABLES,
    META,
    WEIGHT,
    BIAS,
    OUT,
    events,
    columns,
    single,
    averaged,
    slots,
    model,
    width,
    AVERAGED: constexpr,
    TILE: constexpr,
    TILE_M: constexpr,
    GROUPS: constexpr,
    HALF: constexpr,
):
    # Neighbouring programs share their events, so that the second gather of a row finds it in the cache.
    tiles_m = tl.cdiv(model, TILE_M)
    t = (tl.program_id(0) // tiles_m) * TILE + tl.arange(0, TILE)
    m = (tl.program_id(0) % tiles_m) * TILE_M + tl.arange(0, TILE_M)
    out = tl.zeros([TILE, TILE_M], tl.float32)
    # Ids are read a chunk ahead: the pipeline then copies rows whose addresses it has.
    offsets = group_rows(IDS, META, 0, 0, t, events, columns, 0, GROUPS)
    place = _place(META, 0, GROUPS)
    for chunk in tl.range(0, single):
        rows = load_groups(TABLES, offsets, TILE, GROUPS).to(WEIGHT.dtype.element_ty)
        weight = _weight(WEIGHT, place, m, model, width, TILE_M, GROUPS)
        out = tl.dot(rows, tl.trans(weight), out, input_precision="ieee")
        group = (chunk + 1) * GROUPS
        offsets = group_rows(IDS, META, group, 0, t, events, columns, 0, GROUPS)
        place = _place(META, group, GROUPS)
    if AVERAGED:
        for chunk in tl.range(0, averaged, num_stages=1):
            group = single * GROUPS + chunk * HALF
            means = mean_groups(TABLES, IDS, META, group, slots, t, events, columns, TILE, HALF)
            half = _weight(WEIGHT, _place(META, group, HALF), m, model, width, TILE_M, HALF)
            out = tl.dot(means.to(WEIGHT.dtype.element_ty), tl.trans(half), out, input_precision="ieee")
    if BIAS is not None:
        out += tl.load(BIAS + m, mask=m < model, other=0.0).to(tl.float32)[None, :]
    at = OUT + t.to(tl.int64)[:, None] * model + m[None, :]
    tl.store(at, out.to(OUT.dtype.element_ty), mask=(t < events)[:, None] & (m < model)[None, :])


@jit()
def _place(META, group, GROUPS: constexpr):
    """The groups' first columns of the weight."""
    return tl.load(META + (group + tl.arange(0, GROUPS)) * 6 + 5)


@jit()
def _weight(WEIGHT, place, m, model, width, TILE_M: constexpr, GROUPS: constexpr):
    """The groups' columns of the weight's rows m: [TILE_M, 8 · GROUPS]. Empty groups read some, which zeros meet."""
    offsets = m.to(tl.int64)[:, None] * width + place[None, :]
    return tl.load(WEIGHT + spread(offsets, TILE_M, GROUPS), mask=(m < model)[:, None], other=0.0)
