"""How many homepages a second does the engine make without a server? On a GPU, if there is one, in several processes.

    python -m frontrow.benchmarks.in_process [BUNDLE] [--processes 1 4 8] [--batch 1 4 16 64] [--mode events …]
        → results/in-process-<device>.json

Each process is what an instance of the server is: a Store of its own and one thread. All ask at once, one batch after
the other, for pages of 40 × 20; none of the rankings asked for was kept, but in the mode `again`. Latency is that of
a batch. Needs no Triton Server and no client: torch, Triton, numpy, safetensors and faiss-cpu.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..foundation.bundle import load_bundle, newest_bundle
from ..serving.graphs import Recorded
from ..serving.homepage import HomepageEngine
from ..serving.requests import PageRequest
from ..serving.store import Store
from .command import command, positive
from .provenance import device, provenance, slug, write_result
from .serve_load import MODES, draw_requests

HOUR = 3600
ALL = (*MODES, "again")  # stored members who were there within the hour
Cell = tuple[str, int, float]  # mode, members of a batch, seconds


def opened(path: Path, replayed: bool) -> tuple[HomepageEngine, dict[str, float]]:
    """An engine as an instance has it, and the seconds until it was there, of which `import torch` is none."""
    torch.set_num_threads(1)
    started = time.perf_counter()
    bundle = load_bundle(path)
    loaded = time.perf_counter()
    engine = HomepageEngine(Store(bundle))
    made = time.perf_counter()
    engine.pages([PageRequest(), PageRequest(int(bundle.member_ids[0]))])
    warm = time.perf_counter()
    if engine.store.graphs is not None and not replayed:
        for recorded in vars(engine.store.graphs).values():
            for graph in recorded.graphs if isinstance(recorded, Recorded) else ():
                graph.graph = None  # the same functions and shapes, launched kernel by kernel
    seconds = {"bundle": loaded - started, "store": made - loaded, "first_pages": warm - made}
    return engine, {name: round(value, 3) for name, value in seconds.items()}


def measured(engine: HomepageEngine, cell: Cell, first: int = 0) -> dict[str, Any]:
    """Pages and seconds of batch after batch, the milliseconds of each, and those of its stages. first: the request to
    begin with, another one for each process."""
    mode, size, seconds = cell
    requests = draw_requests(engine.store.bundle, "stored" if mode == "again" else mode)  # type: ignore[arg-type]
    now, times = time.time(), []
    engine._kept.clear()  # what was measured before may have asked for the same
    for at in range(0, len(requests) if mode == "again" else 0, 64):
        engine.pages(requests[at : at + 64], now)
    before = Counter(engine.stage_seconds)
    started = time.perf_counter()
    while not times or time.perf_counter() < started + seconds:
        at = first + size * len(times)
        batch = [requests[(at + i) % len(requests)] for i in range(size)]
        began = time.perf_counter()
        answers = engine.pages(batch, now if mode == "again" else now - HOUR * len(times))
        times.append((time.perf_counter() - began) * 1000)
        if wrong := [a for a in answers if isinstance(a, ValueError)]:
            raise wrong[0]
    stages = {s: 1000 * (t - before[s]) / len(times) for s, t in engine.stage_seconds.items()}
    return {"pages": size * len(times), "seconds": time.perf_counter() - started, "times": times, "stages": stages}


def together(found: list[dict[str, Any]]) -> dict[str, Any]:
    """What all processes did: pages a second, percentiles of a batch, stages."""
    times = np.concatenate([f["times"] for f in found])
    stages = {s: round(float(np.mean([f["stages"].get(s, 0.0) for f in found])), 3) for s in found[0]["stages"]}
    return {
        "pages_per_second": round(sum(f["pages"] / f["seconds"] for f in found), 1),
        "batch_ms": {f"p{q}": round(float(np.percentile(times, q)), 3) for q in (50, 95, 99)},
        "batches": len(times),
        "stages_ms": stages,
    }


def work(path: Path, replayed: bool, number: int, cells: list[Cell], barrier: Any, answers: Any) -> None:
    """One process: what it took to open, then what it measured of each cell, all processes at the same time."""
    engine, seconds = opened(path, replayed)
    barrier.wait()
    if engine.store.device.type == "cuda":
        free, total = torch.cuda.mem_get_info()
        seconds |= {"gpu_mb_of_all": round((total - free) / 1e6), "gpu_mb": round(torch.cuda.memory_reserved() / 1e6)}
    answers.put(seconds)
    for cell in cells:
        measured(engine, (*cell[:2], cell[2] / 10))
        barrier.wait()
        answers.put(measured(engine, cell, 37 * number))
        barrier.wait()


def of_processes(path: Path, count: int, cells: list[Cell], replayed: bool) -> dict[str, Any]:
    """`count` of them, and what they found of each cell."""
    context = get_context("spawn")
    barrier, answers = context.Barrier(count), context.Queue()
    workers = [context.Process(target=work, args=(path, replayed, n, cells, barrier, answers)) for n in range(count)]
    try:
        for worker in workers:
            worker.start()
        ready = [answers.get(timeout=300) for _ in workers]
        content: dict[str, Any] = {"processes": count, "opened": ready, "loads": []}
        for mode, size, seconds in cells:
            found = [answers.get(timeout=60 + 10 * seconds) for _ in workers]
            content["loads"].append({"mode": mode, "batch": size, **together(found)})
            print(f"{count} processes, {content['loads'][-1]}", flush=True)
    finally:
        for worker in workers:
            worker.terminate()
            worker.join()
    return content


def main(given: argparse.Namespace) -> None:
    path = given.bundle or newest_bundle(Path("bundles"))
    bundle = load_bundle(path)
    cells = [(mode, size, given.seconds) for mode in given.mode for size in given.batch]
    content: dict[str, Any] = {
        "what": "homepages of the engine without a server, batch after batch in each of several processes",
        "data_set": bundle.manifest.get("data_set") or str(path),
        "titles": len(bundle.titles),
        "replayed": not given.eager,
        **provenance("python -m frontrow.benchmarks.in_process " + " ".join(sys.argv[1:])),
        "runs": [],
    }
    for count in given.processes:
        content["runs"].append(of_processes(path, count, cells, not given.eager))
        print(content["runs"][-1]["opened"], flush=True)
        written = write_result(f"in-process-{slug(device())}" + ("-eager" if given.eager else ""), content)
        print(written)


if __name__ == "__main__":
    with command("in_process", __doc__) as parser:
        parser.add_argument("bundle", nargs="?", type=Path, metavar="BUNDLE", help="default: the newest in bundles/")
        parser.add_argument("--processes", nargs="+", type=positive, default=[1], metavar="N", help="default: 1")
        parser.add_argument(
            "--batch", nargs="+", type=positive, default=[1, 4, 16, 64], metavar="N", help="members at once"
        )
        parser.add_argument("--mode", nargs="+", choices=ALL, default=list(ALL), help="default: all")
        parser.add_argument("--seconds", type=float, default=3.0, help="of each; default: 3")
        parser.add_argument("--eager", action="store_true", help="on a GPU: launch kernels, replay no graphs")
        main(parser.parse_args())
