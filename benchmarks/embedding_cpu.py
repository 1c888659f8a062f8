"""How much faster is the folded event embedding on a CPU than gathering, concatenating and projecting?

    python -m frontrow.benchmarks.embedding_cpu    → results/embedding-cpu.json

Two shapes: the default schema at M = 128 with 1,682 titles, and ten fields of E = 512 with a table of 100,000 rows of
256 at M = 512. Ids uniform, another draw for each call. Each round calls torch eager (embedding, embedding_bag, cat,
linear), the public op and the fold in turn, with one thread and then with two. First all three must agree. With two
threads a call waits for the slower one: where others use the cores too (see load in the result) that is what is timed.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from itertools import accumulate, product
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..foundation.schema import FIRST, default_schema
from ..kernels.event_embedding import event_embedding, event_embedding_reference
from ..kernels.folded_embedding import fold
from .provenance import provenance, write_result

EVENTS, THREADS = (1, 10, 100, 1000), (1, 2)
ROUNDS, WARMUP, DRAWS = 300, 30, 40
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
    "F=10, E=512, one table of 100,000 x 256, M=512": (
        512,
        lambda: [(100_000, 256, 1), *((24, width, 1) for width in (64, 32, 32, 32, 32, 16, 16, 16, 16))],
    ),
}


def microseconds(calls: dict[str, Callable[[Tensor], Tensor]], draws: list[Tensor]) -> dict[str, float]:
    """Median time of each call, in microseconds, the calls taking turns."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for i in range(WARMUP + ROUNDS):
        for j, (name, call) in enumerate(calls.items()):
            ids = draws[(i * len(calls) + j) % len(draws)]
            started = time.perf_counter()
            call(ids)
            times[name].append((time.perf_counter() - started) * 1e6)
    return {name: round(float(np.median(t[WARMUP:])), 1) for name, t in times.items()}


@torch.inference_mode()
def measured(model: int, fields: list[Field]) -> list[dict[str, Any]]:
    """One entry per number of threads and of events."""
    stops = list(accumulate(slots for _, _, slots in fields))
    spans = [(stop - slots, stop) for stop, (_, _, slots) in zip(stops, fields, strict=True)]
    tables = [torch.randn(rows, width) for rows, width, _ in fields]
    weight, bias = torch.randn(model, sum(width for _, width, _ in fields)) * 0.1, torch.randn(model)
    folded = fold(tables, spans, weight, bias)
    calls = {
        "eager": lambda ids: event_embedding_reference(ids, tables, spans, weight, bias),
        "event_embedding": lambda ids: event_embedding(ids, tables, spans, weight, bias),
        "folded": folded,
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
    return found


def main() -> None:
    torch.manual_seed(0)
    before = os.getloadavg()[0]
    found = {name: measured(model, fields()) for name, (model, fields) in SHAPES.items()}
    content = {
        "what": "median microseconds of one call, float32; ratio: eager / folded",
        "rounds": ROUNDS,
        "load": {"before": round(before, 1), "after": round(os.getloadavg()[0], 1)},
        "shapes": found,
        **provenance("python -m frontrow.benchmarks.embedding_cpu"),
    }
    for name, rows in found.items():
        print(name, *rows, sep="\n  ")
    print(write_result("embedding-cpu", content))


if __name__ == "__main__":
    main()
