"""Which shape of model repository is fastest: one process, an ensemble of stages, or business logic that calls them?

    python -m frontrow.benchmarks.repository_shapes BUNDLE    → results/repository-shapes.json

The stages are those of model_repository/ and one that assembles pages (staged_page.py), in a repository of the
measurement. All shapes answer with the same weights; their pages are compared before any is timed. No stage keeps
anything of a member, so that the one process is measured without that, too; `homepage` is the model as shipped, which
keeps rankings. Servers run throughout and are asked in turn by one generator (serve_client.py). Three minutes, 8 GB.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from ..foundation.bundle import load_bundle
from ..foundation.schema import WIRE
from ..serving.homepage import CANDIDATES, HomepageEngine, Page
from ..serving.serve import STAGE_MODELS
from ..serving.store import Store
from .command import command, positive
from .peers_running import Running
from .provenance import provenance, write_result
from .scratch_repository import Model, models_serving
from .serve_client import Target, encoded
from .serve_load import ROWS, TITLES, draw_requests
from .serve_peers import CHECKED, IN_FLIGHT, check, load, summary
from .staged_page import ASSEMBLY, ENSEMBLE_LACKS, LACKS, ensemble_config

SHAPES = ("one process", "ensemble", "business logic", "homepage")
STAGES = (*(Model(name) for name in STAGE_MODELS), Model("page_assembly", "page_assembly.py", ASSEMBLY))
ROUNDS, SECONDS = 3, 3.0


@contextmanager
def shape(kind: str, bundle: Path, threads: int | None = None) -> Iterator[Running]:
    """A server with a bundle in one of SHAPES until the block ends. threads: of each stage, None for torch's choice,
    which one process always has."""
    if kind in ("one process", "homepage"):
        code = "forgetful_homepage.py" if kind == "one process" else None
        models, name, ensemble, threads = [Model("homepage", code)], "homepage", "", None
    elif kind == "ensemble":
        models, name, ensemble = [*STAGES], "ensemble", ensemble_config()
    else:
        bls = Model("bls_homepage", "bls_homepage.py", WIRE["homepage"])
        models, name, ensemble = [*STAGES, bls], bls.name, ""
    with models_serving(bundle, models, threads=threads, ensemble=ensemble) as server:
        rows = [row["row_id"] for row in load_bundle(bundle).rows["rows"]] if ensemble else []
        constants = {"k": [CANDIDATES], "all_row_ids": rows} if ensemble else {}
        yield Running(Target("kserve", (server.address,), name, constants=constants), server.processes)


def ratios(runs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Each shape's p50 and throughput over that of one process in the same round: median, least, most."""
    by = {(r["server"], r["in_flight"], r["round"]): r for r in runs}
    found = []
    for kind in SHAPES[1:]:
        for in_flight in dict.fromkeys(k for _, k, _ in by):
            numbers = [n for server, k, n in by if (server, k) == (kind, in_flight)]
            pairs = [(by[kind, in_flight, n], by[SHAPES[0], in_flight, n]) for n in numbers]
            line: dict[str, Any] = {"shape": kind, "in_flight": in_flight}
            for name, of in (
                ("throughput", lambda r: r["pages_per_second"]),
                ("p50", lambda r: r["latency_ms"]["p50"]),
                ("p99", lambda r: r["latency_ms"]["p99"]),
            ):
                each = [of(this) / of(one) for this, one in pairs]
                line[name] = [round(value, 3) for value in (statistics.median(each), min(each), max(each))]
            found.append(line)
    return found


def measure(path: Path, rounds: int, seconds: float, threads: int, command: str) -> dict[str, Any]:
    """The content of the result file. threads: of each stage; one process takes torch's own choice."""
    bundle = load_bundle(path)
    requests = draw_requests(bundle, "stored")
    same = requests[:CHECKED]
    engine = HomepageEngine(Store(bundle))
    pages = [page for page in (engine.pages([r])[0] for r in same) if isinstance(page, Page)]
    content: dict[str, Any] = {
        "what": "a homepage of a stored history over gRPC; ratios are to one process: median, least, most",
        "data_set": bundle.manifest.get("data_set") or str(path),
        "titles": len(bundle.titles),
        "candidates": min(CANDIDATES, len(bundle.titles)),
        "page": [ROWS, TITLES],
        "seconds": seconds,
        "threads_of_each_stage": threads,
        "stages_lack": LACKS,
        "ensemble_lacks": ENSEMBLE_LACKS,
        **provenance(command),
        "runs": [],
    }
    with ExitStack() as stack:
        servers = {
            k: stack.enter_context(shape(k, path, threads if k in ("ensemble", "business logic") else None))
            for k in SHAPES
        }
        content["models"] = {k: len(server.processes()) - 1 for k, server in servers.items()}
        content["titles_missing"] = {k: check(k, server, same, pages) for k, server in servers.items()}
        bodies = {k: [encoded(server.target, r) for r in requests] for k, server in servers.items()}
        for number in range(rounds):
            turn = SHAPES[number % len(SHAPES) :] + SHAPES[: number % len(SHAPES)]
            for in_flight in IN_FLIGHT:
                for kind in turn:
                    run = {"server": kind, "mode": "stored", "in_flight": in_flight, "round": number}
                    content["runs"].append(run | load(servers[kind], bodies[kind], in_flight, seconds))
    content |= {"summary": summary(content["runs"]), "ratios": ratios(content["runs"])}
    return content


def main(given: argparse.Namespace) -> None:
    command = "python -m frontrow.benchmarks.repository_shapes " + " ".join(sys.argv[1:])
    content = measure(given.bundle, ROUNDS, SECONDS, given.threads, command)
    for line in content["summary"]:
        print(
            f"{line['server']}, {line['in_flight']} in flight: {line['pages_per_second']:.1f} pages/s, "
            f"p50 {line['p50_ms']:.1f} ms, p99 {line['p99_ms']:.1f}, {line['memory_mb']:.0f} MB"
        )
    print(write_result("repository-shapes", content))


if __name__ == "__main__":
    with command("repository_shapes", __doc__) as parser:
        parser.add_argument("bundle", type=Path, metavar="BUNDLE")
        parser.add_argument(
            "--threads", type=positive, default=1, help="of each stage; default: 1, for they run at once"
        )
        main(parser.parse_args())
