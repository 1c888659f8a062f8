"""How fast is the homepage served, at which load, and where does the time go? perf_analyzer against `frontrow serve`.

    frontrow bench serve BUNDLE [--concurrency 1 2 …] [--rate 20 40 …]   → results/serve-<data set>.json, .csv, .png
    frontrow bench serve BUNDLE --quick                                  a minute, to see that everything works
    frontrow bench serve BUNDLE --compare A B                            is B slower than A? exit code 1 if so

Each round asks, in each mode (serve_load.py), first the engine in this process, one request at a time and with one
thread, and then the server over gRPC: so many requests in flight, or so many a second at random times. Client and
server share the host. Stored members have been there within the hour: before the first round each was asked for once.
Figures are medians of the rounds. --compare: see serve_compare.py.
"""

from __future__ import annotations

import argparse
import csv
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch

from ..foundation.bundle import load_bundle, newest_bundle
from ..serving.homepage import CANDIDATES, HomepageEngine
from ..serving.requests import PageRequest
from ..serving.serve import default_instances
from ..serving.store import Store
from .command import command, positive
from .open_loop import in_flight, serialized
from .provenance import RESULTS, device, provenance, slug, write_result
from .serve_compare import ROUNDS as COMPARE_ROUNDS
from .serve_compare import THRESHOLD, compare
from .serve_load import MODES, ROWS, TITLES, Mode, draw_requests, input_data
from .serve_run import OPEN, Load, LoadError, Server, measured, serving

CONCURRENCY = tuple(2**i for i in range(9))
SHARES = (0.5, 0.8, 0.95)  # of the most pages a second found: the rates when none are given
ROUNDS, SECONDS = 3, 6.0
QUICK = {"concurrency": [1, 8], "rounds": 1, "seconds": 1.5}


def in_process(engine: HomepageEngine, requests: Sequence[PageRequest], seconds: float) -> dict[str, float]:
    """Percentiles of the time of one page, milliseconds, without a server."""
    times = []
    end = time.perf_counter() + seconds
    while len(times) < 10 or time.perf_counter() < end:
        started = time.perf_counter()
        page = engine.pages([requests[len(times) % len(requests)]])[0]
        times.append((time.perf_counter() - started) * 1000)
        if isinstance(page, ValueError):
            raise page
    return {f"p{q}": round(float(np.percentile(times, q)), 3) for q in (50, 95, 99)}


def one_mode(
    server: Server, data: Path, concurrency: Sequence[int], rates: Sequence[float], seconds: float, expected: float
) -> list[dict[str, Any]]:
    """A record of each load, least first. expected: pages a second of the first. rates: empty for SHARES."""
    found: list[dict[str, Any]] = []

    def run(load: Load, **more: float) -> None:
        nonlocal expected
        try:
            figures = measured(server, data, load, seconds, expected)
            expected = figures["pages_per_second"]
        except LoadError as error:
            figures = {"error": str(error)}
        found.append({"load": load.kind, "value": load.value, **more, **figures})

    for number in sorted(concurrency):
        run(Load("concurrency", number))
    most = max((f["pages_per_second"] for f in found if "error" not in f), default=0)
    for rate in sorted(rates):
        run(Load("rate", rate))
    for share in () if rates else SHARES:
        run(Load("rate", max(1.0, round(most * share, 1))), share=share)
    return found


def summary(runs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """A flat line for each mode and load, medians of the rounds that came to an end; `errors` counts the others."""
    groups: dict[tuple[str, str, float], list[dict[str, Any]]] = {}
    for run in runs:  # rates that are shares of what was reached differ from round to round
        groups.setdefault((run["mode"], run["load"], run.get("share", run["value"])), []).append(run)
    lines = []
    for (mode, load, _), group in groups.items():
        flat = [_flat(run) for run in group if "error" not in run]
        middle = {k: round(statistics.median(f[k] for f in flat), 3) for k in flat[0]} if flat else {}
        value = statistics.median_low([run["value"] for run in group])
        lines.append({"mode": mode, "load": load, "value": value, "errors": len(group) - len(flat), **middle})
    return lines


def _flat(run: dict[str, Any]) -> dict[str, float]:
    latency, split = run["latency_ms"], run["split_ms"]
    rest = {k: v for k, v in run.items() if isinstance(v, int | float) and k not in ("value", "round", "share")}
    return {**rest, **{f"{k}_ms": v for k, v in (latency | split).items()}}


def overheads(content: dict[str, Any]) -> dict[str, dict[str, float]]:
    """By mode: p50 milliseconds in process, over gRPC with one request in flight, and the median of what that adds."""
    found = {}
    for mode in MODES:
        engine = {p["round"]: p["p50"] for p in content["in_process_ms"] if p["mode"] == mode}
        served = {
            r["round"]: r["latency_ms"]["p50"]
            for r in content["runs"]
            if (r["mode"], r["load"], r["value"]) == (mode, "concurrency", 1) and "error" not in r
        }
        if both := [(engine[n], served[n]) for n in served]:
            inside, outside = (statistics.median(side) for side in zip(*both, strict=True))
            added = statistics.median(b - a for a, b in both)
            found[mode] = {"in_process": round(inside, 3), "served": round(outside, 3), "added": round(added, 3)}
    return found


def measure(
    path: Path, modes: Sequence[Mode], concurrency: Sequence[int], rates: Sequence[float], rounds: int, seconds: float,
    instances: int, name: str, command: str,
) -> dict[str, Any]:  # fmt: skip
    """The content of the result file, which is written anew after every mode of every round."""
    bundle = load_bundle(path)
    requests = {mode: draw_requests(bundle, mode) for mode in modes}
    lengths = np.diff(bundle.histories.offsets)
    content: dict[str, Any] = {
        "what": "a homepage over gRPC, client and server on one host",
        "data_set": bundle.manifest.get("data_set") or str(path),
        "titles": len(bundle.titles),
        "members": len(bundle.member_ids),
        "history": float(np.median(lengths)) if len(lengths) else 0,
        "candidates": min(CANDIDATES, len(bundle.titles)),
        "page": [ROWS, TITLES],
        "instances": instances,
        "queue": OPEN,
        "rounds": rounds,
        "seconds": seconds,
        **provenance(command),
        "in_process_ms": [],
        "runs": [],
    }
    torch.set_num_threads(1)  # as in an instance of the server
    engine = HomepageEngine(Store(bundle))
    engine.pages(draw_requests(bundle, "stored"))
    with tempfile.TemporaryDirectory() as scratch, serving(path, instances) as server:
        content["ready_seconds"] = round(server.ready_seconds, 2)
        print(f"ready {content['ready_seconds']} s after the launch", flush=True)
        content["memory_mb_when_ready"] = round(server.memory_mb(), 1)
        for _ in range(4 * instances):  # until each instance has met each of them, all but surely
            in_flight(server.address, [serialized(r) for r in draw_requests(bundle, "stored")], 16, 2.0)
        for mode in modes:
            (Path(scratch) / mode).write_text(json.dumps(input_data(requests[mode])), "utf-8")
        for number in range(rounds):
            for mode in modes:
                inside = in_process(engine, requests[mode], seconds)
                content["in_process_ms"].append({"mode": mode, "round": number, **inside})
                expected = 500 / inside["p50"]  # half of what the engine makes alone
                for run in one_mode(server, Path(scratch) / mode, concurrency, rates, seconds, expected):
                    content["runs"].append({"mode": mode, "round": number, **run})
                    print(_said(content["runs"][-1]), flush=True)
                content |= {"summary": summary(content["runs"]), "overhead_ms": overheads(content)}
                write_result(name, content)
    return content


def _said(run: dict[str, Any]) -> str:
    what = f"round {run['round']} {run['mode']} {run['load']} {run['value']:g}: "
    if "error" in run:
        return what + run["error"]
    latency = run["latency_ms"]
    return what + (
        f"{run['pages_per_second']:.1f} pages/s, p50 {latency['p50']:.1f} ms, p95 {latency['p95']:.1f}, "
        f"p99 {latency['p99']:.1f}, batch {run['mean_batch']}, CPU {run['cpu_percent']:.0f} %"
    )


def write_csv(lines: Sequence[dict[str, Any]], path: Path) -> None:
    """The summary for spreadsheets."""
    columns = list(dict.fromkeys(key for line in lines for key in line))
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(lines)


def plot(content: dict[str, Any], path: Path) -> None:
    """Latency against throughput, a panel for each mode: p50 and p99, for requests in flight and for Poisson rates."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    modes = list(dict.fromkeys(line["mode"] for line in content["summary"]))
    figure, axes = plt.subplots(1, len(modes), figsize=(1 + 4.2 * len(modes), 4.6), sharey=True, squeeze=False)
    titles = {"stored": "history stored", "events": "up to 200 events in the request", "mixed": "mixed lengths"}
    for axis, mode in zip(axes[0], modes, strict=True):
        for load, style in (("concurrency", "-o"), ("rate", "--^")):
            lines = [s for s in content["summary"] if (s["mode"], s["load"]) == (mode, load) and "p50_ms" in s]
            for percentile, colour in (("p50", "tab:blue"), ("p99", "tab:red")):
                label = f"{percentile}, {'in flight (number)' if load == 'concurrency' else 'Poisson rate'}"
                x, y = [s["pages_per_second"] for s in lines], [s[f"{percentile}_ms"] for s in lines]
                axis.plot(x, y, style, color=colour, label=label, markersize=5, alpha=0.6 if load == "rate" else 1)
            for s in lines if load == "concurrency" else ():
                axis.annotate(f"{s['value']:g}", (s["pages_per_second"], s["p50_ms"]), textcoords="offset points",
                              xytext=(4, -11), fontsize=8)  # fmt: skip
        axis.set(title=titles[mode], xlabel="pages per second", yscale="log")
        axis.set_xlim(left=0)
        axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axis.yaxis.set_minor_formatter(NullFormatter())
        axis.grid(True, which="both", alpha=0.25)
    axes[0][0].set_ylabel("latency at the client, ms")
    axes[0][-1].legend(fontsize=8)
    figure.suptitle(
        f"{content['data_set']}: {content['candidates']} of {content['titles']:,} titles, page {ROWS} × {TITLES}\n"
        f"{content['instances']} instance(s), the queue open, {content['rounds']} round(s), {content['device']}, "
        f"{content['date']}",
        fontsize=10,
    )
    figure.tight_layout()
    figure.savefig(path, dpi=130)
    plt.close(figure)


def main(given: argparse.Namespace) -> int:
    path = given.bundle or newest_bundle(Path("bundles"))
    command = "frontrow bench serve " + " ".join(sys.argv[1:])
    if given.compare:
        return compare(path, *given.compare, threshold=given.threshold, rounds=given.rounds or COMPARE_ROUNDS)
    quick = QUICK if given.quick else {}
    data_set = json.loads((path / "manifest.json").read_bytes()).get("data_set") or path.resolve().parent.name
    name = f"serve-{data_set}" + (f"-{slug(device())}" if torch.cuda.is_available() else "")
    name += "-quick" if given.quick else ""
    content = measure(
        path, given.mode or MODES, given.concurrency or quick.get("concurrency") or CONCURRENCY, given.rate or (),
        given.rounds or quick.get("rounds") or ROUNDS, given.seconds or quick.get("seconds") or SECONDS,
        given.instances, name, command.strip(),
    )  # fmt: skip
    write_csv(content["summary"], RESULTS / f"{name}.csv")
    plot(content, RESULTS / f"{name}.png")
    print(json.dumps(content["overhead_ms"]))
    print(RESULTS / f"{name}.json")
    return 1 if any("error" in run for run in content["runs"]) else 0


if __name__ == "__main__":
    with command("frontrow bench serve", __doc__) as parser:
        parser.add_argument("bundle", nargs="?", type=Path, metavar="BUNDLE", help="default: the newest in bundles/")
        parser.add_argument("--mode", nargs="+", choices=get_args(Mode), help="default: all")
        parser.add_argument("--concurrency", nargs="+", type=int, metavar="N", help="default: 1, 2, 4 … 256")
        parser.add_argument(
            "--rate", nargs="+", type=float, metavar="R", help="default: 0.5, 0.8, 0.95 of the most pages a second"
        )
        parser.add_argument(
            "--rounds", type=positive, metavar="N", help=f"default: {ROUNDS}; {COMPARE_ROUNDS} with --compare"
        )
        parser.add_argument("--seconds", type=float, help=f"of each load, about; default: {SECONDS:g}")
        parser.add_argument(
            "--instances", type=positive, default=default_instances(), help="copies of the model; default: serve's"
        )
        parser.add_argument("--quick", action="store_true", help="a small load, in a minute; result file serve-…-quick")
        parser.add_argument(
            "--compare", nargs=2, type=Path, metavar=("A", "B"), help="two checkouts, or two bundles: is B slower?"
        )
        parser.add_argument(
            "--threshold", type=float, default=THRESHOLD, help=f"with --compare: share of loss allowed; {THRESHOLD}"
        )
        sys.exit(main(parser.parse_args()))
