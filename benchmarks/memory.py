"""How much memory does a server hold, and each further instance of the model?

    frontrow bench memory [BUNDLE] [--instances 1 2 3]     → results/memory-<data set>.json

After some requests of mixed lengths. Pss counts what several processes share, the bundle's files and libraries, once in
all; Uss is what a process has alone and would give back.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from ..foundation.bundle import load_bundle, newest_bundle
from .command import command, positive
from .open_loop import in_flight, serialized
from .provenance import provenance, write_result
from .serve_load import draw_requests
from .serve_run import Server, serving

SECONDS = 3.0


def by_process(server: Server) -> list[dict[str, Any]]:
    """Megabytes of each process: what it is, pss, uss, and the part of pss that no file backs."""
    found = []
    for pid in server.processes():
        program, *words = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
        model = Path(words[0]).parts[-3] if program.endswith("stub") else Path(program).name
        lines = [line.split() for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]]
        kb = {name.rstrip(":"): int(value) for name, value, *_ in lines}
        uss = kb["Private_Clean"] + kb["Private_Dirty"]
        figures = {"pss_mb": kb["Pss"], "uss_mb": uss, "anonymous_mb": kb["Pss_Anon"]}
        found.append({"process": model, **{name: round(value / 1000, 1) for name, value in figures.items()}})
    return sorted(found, key=lambda f: f["process"])


def main(given: argparse.Namespace) -> None:
    path = given.bundle or newest_bundle(Path("bundles"))
    bundle = load_bundle(path)
    requests = [serialized(r) for r in draw_requests(bundle, "mixed")]
    counts = sorted(given.instances)
    content: dict[str, Any] = {
        "what": "memory of a server's processes after requests of mixed lengths",
        "data_set": bundle.manifest.get("data_set") or str(path),
        "titles": len(bundle.titles),
        "bundle_mb": round(sum(f.stat().st_size for f in path.iterdir()) / 1e6, 1),
        **provenance(("frontrow bench memory " + " ".join(sys.argv[1:])).strip()),
        "instances": {},
    }
    for count in counts:
        with serving(path, count) as server:
            in_flight(server.address, requests, 8 * count, SECONDS)
            processes = by_process(server)
        total = round(sum(p["pss_mb"] for p in processes), 1)
        content["instances"][count] = {"total_pss_mb": total, "processes": processes}
        print(f"{count} instances: {total:.0f} MB", flush=True)
    totals = {count: content["instances"][count]["total_pss_mb"] for count in counts}
    if len(counts) > 1:
        more = (totals[counts[-1]] - totals[counts[0]]) / (counts[-1] - counts[0])
        content["further_instance_mb"] = round(more, 1)
        print(f"each further instance: {more:.0f} MB")
    data_set = json.loads((path / "manifest.json").read_bytes()).get("data_set") or path.resolve().parent.name
    print(write_result(f"memory-{data_set}", content))


if __name__ == "__main__":
    with command("frontrow bench memory", __doc__) as parser:
        parser.add_argument("bundle", nargs="?", type=Path, metavar="BUNDLE", help="default: the newest in bundles/")
        parser.add_argument(
            "--instances", nargs="+", type=positive, default=[1, 2, 3], metavar="N", help="default: 1 2 3"
        )
        main(parser.parse_args())
