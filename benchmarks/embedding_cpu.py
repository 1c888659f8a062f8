"""How much faster is the folded event embedding on a CPU than gathering, concatenating and projecting?

    python -m frontrow.benchmarks.embedding_cpu    → results/embedding-cpu.json

Three shapes: the default schema with 1,682 titles at M = 128 and at M = 512, and ten fields of E = 512 with a table of
100,000 rows of 256 at M = 512. Ids uniform, another draw for each call. Each round calls torch eager (embedding,
embedding_bag, cat, linear), the public op, the fold and folds of joint tables in an order drawn anew, with one thread
and then with two; before each call caches are filled with something else, as a server's are by the rest of a request.
First all must agree. With two threads a call waits for the slower one: where others use the cores too (see load in the
result) that is what is timed.

Joint tables have a row for each combination of values of several small fields, so that an event is fewer rows. They are
here and not in kernels/ because they do not pay: see LOG.md.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate, product
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..foundation.schema import FIRST, default_schema
from ..kernels.event_embedding import event_embedding, event_embedding_reference
from ..kernels.folded_embedding import FoldedEmbedding, fold
from .command import command
from .provenance import provenance, write_result

EVENTS, THREADS = (1, 10, 100, 1000), (1, 2)
ROUNDS, WARMUP, DRAWS, BUILDS = 300, 30, 40, 3
FLUSH_BYTES = 4 << 20  # several times a core's own cache
JOINT = (128, 512, 2048)  # KiB that a joint table may take
# Rows of the vocabularies of the default schema; the titles are MovieLens-100K's.
VOCABULARIES = {
    "action_type": 6,
    "entity_id": 1682,
    "entity_type": 2,
    "genres": 19,
    "device": 5,
    "canvas": 50,
    "locale": 20,
}

Field = tuple[int, int, int]  # rows, width, columns of ids


def default_fields() -> list[Field]:
    fields = default_schema().fields
    return [(FIRST + VOCABULARIES[f.name] if f.has_vocabulary else f.fixed_size(), f.width, f.slots) for f in fields]


SHAPES: dict[str, tuple[int, Callable[[], list[Field]]]] = {
    "default schema, M=128": (128, default_fields),
    "default schema, M=512": (512, default_fields),
    "F=10, E=512, one table of 100,000 x 256, M=512": (
        512,
        lambda: [(100_000, 256, 1), *((24, width, 1) for width in (64, 32, 32, 32, 32, 16, 16, 16, 16))],
    ),
}


@dataclass(frozen=True)
class Joint:
    """A fold of joint tables, asked with the ids of their fields."""

    folded: FoldedEmbedding
    steps: Tensor  # int32 [C, joint columns]: a joint id is the sum of its fields' ids, each times such a step
    steps_float: Tensor  # the same in float32, which is exact here: no table has 2²⁴ rows

    def __call__(self, ids: Tensor) -> Tensor:
        # The integer product is the quicker one for few events.
        return self.folded(ids @ self.steps if len(ids) < 100 else (ids.float() @ self.steps_float).int())


def join(tables: Sequence[Tensor], spans: Sequence[tuple[int, int]], weight: Tensor, bias: Tensor, limit: int) -> Joint:
    """Fields of one column, large ones first, each go into the first joint table that then takes at most `limit` bytes
    folded; where there is none, and where a field has several columns, they stand alone."""
    rows, single = [len(t) for t in tables], [stop - start == 1 for start, stop in spans]
    joint: list[list[int]] = []
    for f in sorted(range(len(tables)), key=lambda f: -rows[f]):
        room = limit // (len(weight) * weight.element_size() * rows[f]) if single[f] else 0
        fitting = (group for group in joint if single[group[0]] and prod(rows[i] for i in group) <= room)
        if group := next(fitting, None):
            group.append(f)
        else:
            joint.append([f])
    joint_tables, joint_spans, steps = [], [], []
    for first, *others in joint:
        table, start, stop = tables[first], *spans[first]
        joint_spans.append((len(steps), len(steps) + stop - start))
        steps += torch.eye(spans[-1][1], dtype=torch.int32)[start:stop]
        for f in others:
            steps[-1][spans[f][0]] = len(table)
            table = torch.cat([table.repeat(rows[f], 1), tables[f].repeat_interleave(len(table), 0)], dim=1)
        joint_tables.append(table)
    slices = weight.split([t.shape[1] for t in tables], dim=1)
    joint_weight = torch.cat([slices[f] for group in joint for f in group], dim=1)
    matrix = torch.stack(steps, dim=1)
    return Joint(fold(joint_tables, joint_spans, joint_weight, bias), matrix, matrix.float())


def milliseconds(build: Callable[[], object]) -> float:
    """Median time to make something, in milliseconds."""
    times = []
    for _ in range(BUILDS):
        started = time.perf_counter()
        build()
        times.append((time.perf_counter() - started) * 1e3)
    return round(float(np.median(times)), 1)


def microseconds(calls: dict[str, Callable[[Tensor], Tensor]], draws: list[Tensor]) -> dict[str, float]:
    """Median time of each call, in microseconds, the calls taking turns in an order drawn anew."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    other = torch.zeros(FLUSH_BYTES // 4)
    order, count = list(calls), 0
    for _ in range(WARMUP + ROUNDS):
        random.shuffle(order)  # a call after one much like it is quicker
        for name in order:
            ids, count = draws[count % len(draws)], count + 1
            other.add_(1)
            started = time.perf_counter()
            calls[name](ids)
            times[name].append((time.perf_counter() - started) * 1e6)
    return {name: round(float(np.median(t[WARMUP:])), 1) for name, t in times.items()}


@torch.inference_mode()
def measured(model: int, fields: list[Field]) -> dict[str, Any]:
    """Time to make each fold, rows per event, and one entry of calls per number of threads and of events."""
    stops = list(accumulate(slots for _, _, slots in fields))
    spans = [(stop - slots, stop) for stop, (_, _, slots) in zip(stops, fields, strict=True)]
    tables = [torch.randn(rows, width) for rows, width, _ in fields]
    weight, bias = torch.randn(model, sum(width for _, width, _ in fields)) * 0.1, torch.randn(model)
    torch.set_num_threads(1)
    args = tables, spans, weight, bias
    builds: dict[str, Callable[[], FoldedEmbedding | Joint]] = {"folded": partial(fold, *args)}
    builds |= {f"joint, {kib} KiB": partial(join, *args, limit=kib << 10) for kib in JOINT}
    build_ms = {name: milliseconds(build) for name, build in builds.items()}
    folds = {name: build() for name, build in builds.items()}
    rows = {name: len((made.folded if isinstance(made, Joint) else made).columns) for name, made in folds.items()}
    calls: dict[str, Callable[[Tensor], Tensor]] = {
        "eager": lambda ids: event_embedding_reference(ids, tables, spans, weight, bias),
        "event_embedding": lambda ids: event_embedding(ids, tables, spans, weight, bias),
        **folds,
    }
    found = []
    for threads, events in product(THREADS, EVENTS):
        torch.set_num_threads(threads)
        draws = [
            torch.cat([torch.randint(0, rows, (events, slots)) for rows, _, slots in fields], dim=1).int()
            for _ in range(DRAWS)
        ]
        answers = [call(draws[0]) for call in calls.values()]
        for answer in answers[1:]:
            torch.testing.assert_close(answer, answers[0], rtol=1e-4, atol=1e-4)
        times = microseconds(calls, draws)
        ratio = round(times["eager"] / times["folded"], 2)
        found.append({"threads": threads, "events": events, "microseconds": times, "ratio": ratio})
    return {"build_ms": build_ms, "rows_per_event": rows, "calls": found}


def main() -> None:
    torch.manual_seed(0)
    random.seed(0)
    before = os.getloadavg()[0]
    found = {name: measured(model, fields()) for name, (model, fields) in SHAPES.items()}
    content = {
        "what": "median microseconds of one call, float32; ratio: eager / folded; build: with one thread",
        "rounds": ROUNDS,
        "load": {"before": round(before, 1), "after": round(os.getloadavg()[0], 1)},
        "shapes": found,
        **provenance("python -m frontrow.benchmarks.embedding_cpu"),
    }
    for name, shape in found.items():
        print(name, *({k: shape[k] for k in ("build_ms", "rows_per_event")}, *shape["calls"]), sep="\n  ")
    print(write_result("embedding-cpu", content))


if __name__ == "__main__":
    with command("embedding_cpu", __doc__) as parser:
        parser.parse_args()
        main()
