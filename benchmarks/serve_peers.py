"""Is `frontrow serve` ahead of servers that a straightforward author would write? The same weights, pages and load.

    python -m frontrow.benchmarks.serve_peers BUNDLE [--quick]    → results/serve-peers-<data set>.json, .csv, .png

Peers: (a) a Python-backend model of Triton Server, a request at a time; (b) FastAPI and uvicorn; (c) grpcio;
(d) pytriton with @batch. All answer with plain torch (plain_engine.py) and the project's own page code; each gets the
number of processes and threads that is fastest on this host, tried first. Ours has its default, and one instance beside
it; stored members have been there within the hour. Pages are compared with ours in this process before any is timed.

All servers run throughout and are asked in turn, by one generator (serve_client.py), in each mode (serve_load.py) of
each round; ratios are those of the same round. perf_analyzer asks ours and (a) too, as a check on the generator, and
says what Triton Server adds to a call in this process. Needs `pip install '.[bench]'`, the memory of all servers
together, and about ten minutes for one bundle.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import itertools
import json
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..foundation.bundle import Bundle, load_bundle
from ..serving.homepage import CANDIDATES, HomepageEngine, Page
from ..serving.requests import PageRequest
from ..serving.store import Store
from .command import command
from .peers_running import OURS, OURS_ONCE, PEERS, Running, running
from .provenance import RESULTS, provenance, write_result
from .serve import in_process, write_csv
from .serve_client import ask, closed_loop, decoded, encoded
from .serve_load import MODES, ROWS, TITLES, Mode, draw_requests, input_data
from .serve_run import OPEN, Load, LoadError, cpu_seconds, memory_mb, reported

PACKAGES = ("fastapi", "uvicorn", "uvloop", "httptools", "orjson", "grpcio", "aiohttp", "tritonclient")
SETTINGS = ((1, 2), (2, 1), (2, 2))  # (processes, threads of each)
IN_FLIGHT = (1, 16)
ROUNDS, SECONDS, WARM = 3, 2.5, 0.5
CHECKED = 20  # requests whose pages are compared
MISSING = 0.02  # share of our titles that a peer's pages may lack: ties, and what lower precision turns round
SCORE_TOLERANCE = 0.02


def disagreement(ours: Sequence[Page], answers: Sequence[Mapping[str, np.ndarray]]) -> tuple[float, str | None]:
    """(share of our titles that a page lacks, what is wrong with the answers or None). A near tie, of titles at the end
    of the candidates or of rows, moves everything after it: pages are compared as sets of scored titles."""
    missing, worst = [], 0.0
    for page, answer in zip(ours, answers, strict=True):
        if len(page.row_ids) != len(answer["row_ids"]):
            return 1.0, f"a page has {len(answer['row_ids'])} rows, ours {len(page.row_ids)}"
        wanted, found = _scores(page.title_ids, page.title_scores), _scores(answer["title_ids"], answer["title_scores"])
        both = wanted.keys() & found.keys()
        missing.append(1 - len(both) / max(1, len(wanted)))
        worst = max([worst, *(abs(wanted[t] - found[t]) for t in both)])
    share = statistics.mean(missing)
    if share > MISSING:
        return share, f"{share:.1%} of our titles are missing"
    if worst > SCORE_TOLERANCE:
        return share, f"a title's score is {worst:.3g} off"
    return share, None


def _scores(titles: np.ndarray, scores: np.ndarray) -> dict[int, float]:
    return {t: s for t, s in zip(titles.ravel().tolist(), scores.ravel().tolist(), strict=True) if t >= 0}


def at_noon(bundle: Bundle, requests: Sequence[PageRequest]) -> list[PageRequest]:
    """Requests at the time of the bundle's known ones, so that answers do not depend on when they are given."""
    noon = json.dumps({"timestamp": bundle.known["context"]["timestamp"]}).encode()
    return [replace(r, context=noon) for r in requests]


def check(name: str, server: Running, requests: Sequence[PageRequest], pages: Sequence[Page]) -> float:
    """Share of our titles that its pages lack. Raises RuntimeError if they are not our pages."""
    answers = ask(server.target, [encoded(server.target, r) for r in requests])
    share, wrong = disagreement(pages, [decoded(server.target, a) for a in answers])
    if wrong:
        raise RuntimeError(f"{name} does not answer with our pages: {wrong}")
    return round(share, 4)


def load(server: Running, bodies: Sequence[bytes], in_flight: int, seconds: float) -> dict[str, Any]:
    """What `closed_loop` says, with the processor time and memory of the server."""
    used = cpu_seconds(server.processes())
    found = closed_loop(server.target, bodies, in_flight, seconds, WARM)
    used = (cpu_seconds(server.processes()) - used) / found.pop("pages")
    return {
        **found,
        "cpu_ms_per_page": round(used * 1000, 3),
        "cpu_percent": round(100 * used * found["pages_per_second"], 1),
        "memory_mb": round(memory_mb(server.processes()), 1),
    }


def best_setting(peer: str, bundle: Path, requests: Sequence[PageRequest], seconds: float) -> list[dict[str, Any]]:
    """Each setting's pages a second of mixed requests, 16 in flight, the best first."""
    found = []
    for processes, threads in SETTINGS:
        with running(peer, bundle, processes, threads) as server:
            bodies = [encoded(server.target, r) for r in requests]
            speed = closed_loop(server.target, bodies, IN_FLIGHT[-1], seconds, WARM)["pages_per_second"]
        found.append({"processes": processes, "threads": threads, "pages_per_second": speed})
        print(f"{peer}, {processes} × {threads} threads: {speed:.1f} pages/s", flush=True)
    return sorted(found, key=lambda f: -f["pages_per_second"])


def added(server: Running, data: Path, window: float, inside: Mapping[str, float]) -> dict[str, float]:
    """By perf_analyzer, one request in flight: p50 milliseconds over gRPC, and what that is above a call in process."""
    p50 = reported(server.target.addresses[0], data, Load("concurrency", 1), window)["latency_ms"]["p50"]
    return {"in_process": inside["p50"], "served": p50, "added": round(p50 - inside["p50"], 3)}


def ratios(runs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Ours over each peer's in the same round: throughput, and p50 and p99 of latency; median, least and most."""
    by = {(r["server"], r["mode"], r["in_flight"], r["round"]): r for r in runs}
    kinds = dict.fromkeys((r["server"], r["mode"], r["in_flight"]) for r in runs if r["server"] != OURS)
    found = []
    for peer, mode, in_flight in kinds:
        pairs = [
            (by[OURS, mode, in_flight, n], by[peer, mode, in_flight, n])
            for n in sorted({r["round"] for r in runs})
            if (peer, mode, in_flight, n) in by and (OURS, mode, in_flight, n) in by
        ]
        line: dict[str, Any] = {"peer": peer, "mode": mode, "in_flight": in_flight}
        for name, of in (
            ("throughput", lambda r: r["pages_per_second"]),
            ("p50", lambda r: r["latency_ms"]["p50"]),
            ("p99", lambda r: r["latency_ms"]["p99"]),
        ):
            each = [of(ours) / of(theirs) for ours, theirs in pairs]
            line[name] = {
                "median": round(statistics.median(each), 3), "least": round(min(each), 3), "most": round(max(each), 3)
            }  # fmt: skip
        found.append(line)
    return found


def bars(content: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What was promised and what came of it, for each mode; `ahead` names whoever has the most pages a second."""
    found = []
    for mode in dict.fromkeys(r["mode"] for r in content["runs"]):
        of_a = [r for r in content["ratios"] if (r["peer"], r["in_flight"]) == ("python backend", IN_FLIGHT[-1])]
        for line in (r for r in of_a if r["mode"] == mode):
            times, p99 = line["throughput"]["median"], line["p99"]["median"]
            found.append({"mode": mode, "bar": "throughput of (a) at 16, times", "is": times, "met": times >= 4})
            found.append({"mode": mode, "bar": "p99 of (a) at 16, times", "is": p99, "met": p99 <= 1})
        if more := [o["added"] for o in content["overhead_ms"] if o["mode"] == mode]:
            value = round(statistics.median(more), 3)
            found.append({"mode": mode, "bar": "Triton Server adds, ms", "is": value, "met": value <= 1})
        for in_flight in IN_FLIGHT:
            lines = [s for s in content["summary"] if (s["mode"], s["in_flight"]) == (mode, in_flight)]
            if lines:
                first = max(lines, key=lambda s: s["pages_per_second"])["server"]
                found.append(
                    {"mode": mode, "bar": f"most pages/s at {in_flight}", "is": first, "met": first.startswith(OURS)}
                )
    return found


def summary(runs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A flat line for each server, mode and number in flight: medians of the rounds."""
    groups: dict[tuple[str, str, int], list[Mapping[str, Any]]] = {}
    for run in runs:
        groups.setdefault((run["server"], run["mode"], run["in_flight"]), []).append(run)
    lines = []
    for (server, mode, in_flight), group in groups.items():
        flat = [
            {k: v for k, v in r.items() if k.startswith(("pages", "cpu", "memory"))}
            | {f"{k}_ms": v for k, v in r["latency_ms"].items()}
            for r in group
        ]
        middle = {k: round(statistics.median(f[k] for f in flat), 3) for k in flat[0]}
        lines.append({"server": server, "mode": mode, "in_flight": in_flight, **middle})
    return lines


def measure(path: Path, modes: Sequence[Mode], rounds: int, seconds: float, name: str, command: str) -> dict[str, Any]:
    """The content of the result file, which is written anew after every round."""
    bundle = load_bundle(path)
    requests = {mode: draw_requests(bundle, mode) for mode in modes}
    torch.set_num_threads(1)  # as in an instance of ours
    engine = HomepageEngine(Store(bundle))
    same = at_noon(bundle, draw_requests(bundle, "mixed", CHECKED))
    pages = [page for page in (engine.pages([r])[0] for r in same) if isinstance(page, Page)]
    trials = {peer: best_setting(peer, path, requests[modes[-1]], seconds) for peer in PEERS}
    content: dict[str, Any] = {
        "what": "a homepage, asked for by one asyncio closed-loop client on the same host; ratios are ours / peer's",
        "data_set": bundle.manifest.get("data_set") or str(path),
        "titles": len(bundle.titles),
        "members": len(bundle.member_ids),
        "candidates": min(CANDIDATES, len(bundle.titles)),
        "page": [ROWS, TITLES],
        "queue": OPEN,
        "seconds": seconds,
        **provenance(command),
        "packages": {p: importlib.metadata.version(p) for p in PACKAGES},
        "settings": trials,
        "runs": [],
        "overhead_ms": [],
        "perf_analyzer": [],
    }
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        servers = {name: stack.enter_context(running(name, path)) for name in (OURS, OURS_ONCE)}
        for peer, (best, *_) in trials.items():
            servers[peer] = stack.enter_context(running(peer, path, best["processes"], best["threads"]))
        content["titles_missing"] = {n: check(n, server, same, pages) for n, server in servers.items()}
        for mode in modes:
            (scratch / mode).write_text(json.dumps(input_data(requests[mode])), "utf-8")
        stored = draw_requests(bundle, "stored")
        engine.pages(stored)
        for n in (OURS, OURS_ONCE):  # stored members have been there within the hour
            closed_loop(servers[n].target, [encoded(servers[n].target, r) for r in stored], IN_FLIGHT[-1], 8.0, WARM)
        for number in range(rounds):
            turn = [*servers][number % len(servers) :] + [*servers][: number % len(servers)]
            for mode in modes:
                inside = in_process(engine, requests[mode], seconds)
                with suppress(LoadError):  # fewer rounds, then
                    more = added(servers[OURS], scratch / mode, seconds / 3, inside)
                    content["overhead_ms"].append({"mode": mode, "round": number, **more})
                bodies = {n: [encoded(servers[n].target, r) for r in requests[mode]] for n in turn}
                for in_flight in IN_FLIGHT:
                    for n in turn:
                        run = {"server": n, "mode": mode, "in_flight": in_flight, "round": number}
                        content["runs"].append(run | load(servers[n], bodies[n], in_flight, seconds))
                        print(_said(content["runs"][-1]), flush=True)
            content |= {"summary": summary(content["runs"]), "ratios": ratios(content["runs"])}
            content["bars"] = bars(content)
            write_result(name, content)
        for n, in_flight in itertools.product((OURS, "python backend"), IN_FLIGHT):
            run = {"server": n, "mode": modes[-1], "in_flight": in_flight}
            content["perf_analyzer"].append(run | by_perf_analyzer(servers[n], scratch / modes[-1], in_flight, seconds))
    write_result(name, content)
    return content


def by_perf_analyzer(server: Running, data: Path, in_flight: int, seconds: float) -> dict[str, Any]:
    """What perf_analyzer says of that load; `error` where it does not come to an end."""
    try:
        return reported(server.target.addresses[0], data, Load("concurrency", in_flight), seconds / 2)
    except LoadError as error:
        return {"error": str(error)}


def _said(run: Mapping[str, Any]) -> str:
    latency = run["latency_ms"]
    return (
        f"round {run['round']} {run['mode']}, {run['in_flight']} in flight, {run['server']}: "
        f"{run['pages_per_second']:.1f} pages/s, p50 {latency['p50']:.1f} ms, p99 {latency['p99']:.1f}, "
        f"CPU {run['cpu_percent']:.0f} %, {run['memory_mb']:.0f} MB"
    )


def plot(content: Mapping[str, Any], path: Path) -> None:
    """Pages a second above, latency below; a column for each number in flight, a group for each mode."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    lines = content["summary"]
    servers, modes = ([*dict.fromkeys(s[key] for s in lines)] for key in ("server", "mode"))
    figure, axes = plt.subplots(2, len(IN_FLIGHT), figsize=(5.2 * len(IN_FLIGHT), 6.4), squeeze=False)
    width = 0.8 / len(servers)
    for column, in_flight in enumerate(IN_FLIGHT):
        for i, server in enumerate(servers):
            of = [s for s in lines if (s["server"], s["in_flight"]) == (server, in_flight)]
            x = [modes.index(s["mode"]) + (i - (len(servers) - 1) / 2) * width for s in of]
            axes[0][column].bar(x, [s["pages_per_second"] for s in of], width, label=server)
            axes[1][column].bar(x, [s["p50_ms"] for s in of], width)
            axes[1][column].plot(x, [s["p99_ms"] for s in of], "k_", markersize=9)
        axes[0][column].set(title=f"{in_flight} in flight", ylabel="pages per second")
        axes[1][column].set(ylabel="latency, ms: p50, p99 (tick)")
        for axis in axes[:, column]:
            axis.set_xticks(range(len(modes)), modes)
            axis.grid(True, axis="y", alpha=0.25)
    figure.legend(*axes[0][0].get_legend_handles_labels(), fontsize=8, loc="lower center", ncols=3)
    figure.suptitle(f"{content['data_set']}, {content['device']}, {content['date']}", fontsize=10)
    figure.tight_layout(rect=(0, 0.07, 1, 1))
    figure.savefig(path, dpi=130)
    plt.close(figure)


def main(given: argparse.Namespace) -> None:
    path = given.bundle
    data_set = json.loads((path / "manifest.json").read_bytes()).get("data_set") or path.resolve().parent.name
    name = f"serve-peers-{data_set}" + ("-quick" if given.quick else "")
    rounds, seconds, modes = (1, 1.0, MODES[-1:]) if given.quick else (ROUNDS, SECONDS, MODES)
    command = "python -m frontrow.benchmarks.serve_peers " + " ".join(sys.argv[1:])
    content = measure(path, modes, rounds, seconds, name, command)
    write_csv(content["summary"], RESULTS / f"{name}.csv")
    plot(content, RESULTS / f"{name}.png")
    for bar in content["bars"]:
        print(f"{bar['mode']}: {bar['bar']}: {bar['is']}{'' if bar['met'] else '  (missed)'}")
    print(RESULTS / f"{name}.json")


if __name__ == "__main__":
    with command("serve_peers", __doc__) as parser:
        parser.add_argument("bundle", type=Path, metavar="BUNDLE")
        parser.add_argument(
            "--quick", action="store_true", help="mixed requests alone, one short round; result …-quick"
        )
        main(parser.parse_args())
