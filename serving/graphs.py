"""What a GPU does for a batch as CUDA graphs, recorded before the server is ready and replayed for every batch.

A graph is a function's work for inputs of one shape. There is one for each of a few shapes; a batch takes the smallest
that it fits in, and what it leaves free is filled with what changes nothing: histories of no token, candidates −1. So
Python launches one graph in place of a hundred kernels, and no kernel is compiled, chosen or loaded once the server is
ready. Requests go up through pinned memory and answers come down through it; in between tensors stay on the device.
On a CPU, where nothing is served so, the same code calls the functions: that is how tests run it. Not run on a GPU yet.

Shape letters: B members, T tokens of all histories, C encoded columns, K candidates, N titles, R rows, S sampled
titles, M d_model, D vector width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as nnf
from torch import Tensor

from ..foundation.transformer import FixedRagged
from ..kernels.candidate_scoring import candidate_scoring
from ..kernels.catalogue_search import catalogue_search
from ..kernels.jit import ceil_div
from ..kernels.top_keys import MAX_KEEP

if TYPE_CHECKING:
    from .store import Store

MEMBERS = (1, 2, 4, 8, 16, 32, 64)
HISTORY = (32, 64, 128)  # tokens a member, on average over a batch; beside them the most that the model reads
CANDIDATES = (256, 1024, 1280, 2048)  # a page has 1000, and behind them what pinned rows and seen titles add
Function = Callable[..., tuple[Tensor, ...]]
Value = np.ndarray | Tensor


class Input(NamedTuple):
    """A function's input, and what fills the places that a batch leaves free."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    fill: int = 0


class Graph:
    """A function of inputs of one shape, whose outputs stand at fixed places until the next call."""

    def __init__(self, function: Function, inputs: Sequence[Input], device: torch.device, pool: Any) -> None:
        self.function, self.inputs = function, inputs
        pin = device.type == "cuda"
        self.on_device = partial(torch.cuda.device, device) if pin else nullcontext
        self.fixed = [torch.full(i.shape, i.fill, dtype=i.dtype, device=device) for i in inputs]
        self.staged = [torch.full(i.shape, i.fill, dtype=i.dtype, pin_memory=pin) for i in inputs]
        self.graph = self.sent = None
        if pin:
            with self.on_device():
                self.graph, self.sent = torch.cuda.CUDAGraph(), torch.cuda.Event()
                self._warm_up()
                with torch.cuda.graph(self.graph, pool=pool):
                    self.outputs = function(*self.fixed)
        else:
            self.outputs = function(*self.fixed)
        self.received = [torch.empty_like(o, device="cpu", pin_memory=pin) for o in self.outputs]

    def _warm_up(self) -> None:
        """Kernels are compiled and loaded, and what they keep is made, before the recording, which must not do so."""
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(2):
                self.function(*self.fixed)
        torch.cuda.current_stream().wait_stream(aside)

    def holds(self, values: Sequence[Value]) -> bool:
        """Whether no value is larger than its input."""
        return all(
            n <= m for v, i in zip(values, self.inputs, strict=True) for n, m in zip(v.shape, i.shape, strict=True)
        )

    def __call__(self, values: Sequence[Value]) -> tuple[Tensor, ...]:
        if self.sent is not None:
            self.sent.synchronize()  # what was staged for the last batch has gone up
        for value, fixed, staged, (_, _, fill) in zip(values, self.fixed, self.staged, self.inputs, strict=True):
            corner = tuple(slice(n) for n in value.shape)
            if isinstance(value, Tensor) and value.device == fixed.device:
                fixed.fill_(fill)
                fixed[corner] = value
            else:
                staged.fill_(fill)
                staged[corner] = torch.as_tensor(value)
                fixed.copy_(staged, non_blocking=True)
        if self.sent is not None:
            self.sent.record(torch.cuda.current_stream(self.fixed[0].device))
        if self.graph is not None:
            with self.on_device():
                self.graph.replay()
        else:
            for place, output in zip(self.outputs, self.function(*self.fixed), strict=True):
                place.copy_(output)
        return self.outputs

    def down(self, rows: int) -> list[np.ndarray]:
        """The outputs' first rows, on the host."""
        for output, received in zip(self.outputs, self.received, strict=True):
            received[:rows].copy_(output[:rows], non_blocking=True)
        if self.sent is not None:
            torch.cuda.current_stream(self.fixed[0].device).synchronize()
        return [received[:rows].numpy().copy() for received in self.received]


class Recorded:
    """A function of inputs as large as those of one of `buckets`, which rise, or smaller; the last has B rows, and so
    have the answers."""

    def __init__(self, function: Function, buckets: Sequence[Sequence[Input]], device: torch.device, pool: Any) -> None:
        # The largest first: others find the memory in the pool that it has left.
        self.graphs = [Graph(function, inputs, device, pool) for inputs in reversed(buckets)][::-1]
        self.device = device

    def smallest(self, values: Sequence[Value]) -> Graph:
        """The first graph that they fit in."""
        return next(g for g in self.graphs if g.holds(values))

    def __call__(self, *values: Value) -> list[Tensor]:
        """The answers on the device, which the next call overwrites."""
        return [output[: len(values[-1])] for output in self.smallest(values)(values)]

    def down(self, *values: Value) -> list[np.ndarray]:
        """The answers on the host."""
        graph = self.smallest(values)
        graph(values)
        return graph.down(len(values[-1]))


class Graphs:
    """The device's part of a page from a Store, for any number of members: more than fit a graph go in parts."""

    @torch.inference_mode()
    def __init__(self, store: Store) -> None:
        self.store, self.longest = store, store.model.config.max_events + 1
        self._found = min(store.title_count, MAX_KEEP)
        width, d_model, device = store.vectors.shape[1], store.model.config.d_model, store.device
        pool = torch.cuda.graph_pool_handle() if device.type == "cuda" else None

        def recorded(function: Function, buckets: Iterable[Sequence[Input]]) -> Recorded:
            return Recorded(function, list(buckets), device, pool)

        vectors, states = ([Input((b, n), torch.float32) for b in MEMBERS] for n in (width, d_model))
        lengths = {b: sorted({min(h, self.longest) for h in (*HISTORY, self.longest)}) for b in MEMBERS}
        self._encode = recorded(
            self._encoded,
            ([Input((b * t, store.schema.width), torch.int32), Input((b,), torch.int64)]
             for b in MEMBERS for t in lengths[b]),
        )  # fmt: skip
        self._products = recorded(lambda v: (v @ store.normaliser.sampled.T,), ([v] for v in vectors))
        self._row_logits = recorded(
            lambda s: (store.row_ranker(s, store.row_vectors, store.row_biases).float(),), ([s] for s in states)
        )
        self._score = recorded(
            lambda v, c: candidate_scoring(v, store.vectors, c, c.shape[1]),
            ([v, Input((*v.shape[:1], k), torch.int64, -1)] for v in vectors for k in CANDIDATES),
        )
        self._nearest = None
        if store.looks_at_all:
            words = ceil_div(store.title_count, 32)
            self._nearest = recorded(
                lambda v, e: catalogue_search(v, store.vectors, self._found, exclude=e)[:1],
                ([v, Input((*v.shape[:1], words), torch.int32)] for v in vectors),
            )
        store.normaliser.products = self.products

    def _encoded(self, tokens: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        offsets = nnf.pad(lengths.cumsum(0), (1, 0))
        ragged = FixedRagged(offsets, len(tokens), min(self.longest, len(tokens)))
        vectors, states = self.store.model.encode(tokens, ragged)
        return vectors.float(), states.float()

    @torch.inference_mode()
    def encode(self, histories: Sequence[np.ndarray]) -> tuple[Tensor, Tensor] | None:
        """Member vectors [B, D] and row states [B, M] of tokens int32 [T, C] each, on the device; None where a history
        is longer than the model reads, or there is none."""
        lengths = np.array([len(h) for h in histories], np.int64)
        if not len(lengths) or lengths.max() > self.longest:
            return None
        vectors, states = [], []
        for at in _parts(lengths):
            found = self._encode(np.concatenate(histories[at]), lengths[at])
            vectors.append(found[0].clone())  # the next batch's are written where these are
            states.append(found[1].clone())
        return torch.cat(vectors), torch.cat(states)

    def finds(self, k: int) -> bool:
        """Whether `nearest` gives so many."""
        return self._nearest is not None and min(k, self.store.title_count) <= self._found

    def nearest(self, vectors: Value, excluded: Sequence[np.ndarray] | None = None) -> np.ndarray:
        """Indices int64 [B, K] of titles of highest dot product, best first, −1 past the end, K as many as can be.
        excluded: bool [N] of each member, titles that are left out."""
        assert self._nearest is not None
        bits = np.zeros((len(vectors), ceil_div(self.store.title_count, 32) * 4), np.uint8)
        for row, out in zip(bits, excluded or (), strict=False):
            packed = np.packbits(out, bitorder="little")
            row[: len(packed)] = packed
        return self._down(self._nearest, vectors, bits.view(np.int32))[0]

    def products(self, vectors: Value) -> np.ndarray:
        """float32 [B, S], with the normaliser's sample of titles."""
        return self._down(self._products, vectors)[0]

    def row_logits(self, states: Value) -> np.ndarray:
        """float32 [B, R]."""
        return self._down(self._row_logits, states)[0]

    def score(self, vectors: Value, titles: np.ndarray) -> list[np.ndarray] | None:
        """candidate_scoring of candidates [B, K], all of them kept, and as many more places as the graph has; None if
        there are more than in any graph: its kernels are those of the widest."""
        if not len(titles) or titles.shape[1] > CANDIDATES[-1]:
            return None
        return self._down(self._score, vectors, titles)

    @torch.inference_mode()
    def _down(self, recorded: Recorded, *values: Value) -> list[np.ndarray]:
        parts = [recorded.down(*(v[at] for v in values)) for at in _parts(values[0])]
        return [np.concatenate(of) for of in zip(*parts, strict=True)]


def _parts(values: Any) -> list[slice]:
    """Of at most as many members as the largest graph has; at least one."""
    return [slice(first, first + MEMBERS[-1]) for first in range(0, max(len(values), 1), MEMBERS[-1])]
