"""How fast are the kernels, against the card's own floor and against their peers?

    python -m frontrow.benchmarks.kernels [--op NAME] [--out FOLDER]    → kernels-<device>.csv, pictures, README table

Needs a GPU, torch and Triton only. Each op is first checked against float64; an op that is wrong is not timed. Then it
and its peers are timed in one process, in turn and twice, by three clocks (timing.py). The floor is the larger of least
bytes over this card's copy rate and operations over its matrix rate, both measured first; least bytes count a row that
several ask for once, logical bytes each time. Without a GPU nothing is measured and nothing is written.
"""

from __future__ import annotations

import argparse
import csv
import gc
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch

from .kernel_cases import Case, embedding_cases, search_cases
from .kernel_cases_scoring import scoring_cases
from .provenance import RESULTS, provenance
from .timing import Ceilings, Times, ceilings, cold, host, replay

CLOCKS: dict[str, Callable[..., Times]] = {"cold": cold, "replay": replay, "host": host}
ROUNDS = 2
COLUMNS = (
    *("op", "shape", "dtype", "ids", "implementation", "clock", "round", "median_us", "p10_us", "p90_us"),
    *("moved_bytes", "logical_bytes", "flops", "floor_us", "of_floor", "note"),
    *("copy_TB_s", "matrix_TFLOP_s", "device", "driver", "torch", "triton", "commit", "date"),
)
README = Path(__file__).parent / "README.md"
BEGIN, END = "<!-- kernels -->", "<!-- /kernels -->"
Row = dict[str, Any]


def all_cases(device: str = "cuda") -> Iterator[tuple[str, Callable[[], Iterator[Case]]]]:
    """Groups of cases by op; a group's tensors are made when it is asked for and freed with it."""
    yield "event_embedding", lambda: embedding_cases(131_072, 1_000_000, 512, device, torch.bfloat16)
    yield "candidate_scoring", lambda: scoring_cases(1_000_000, 256, 1000, (1, 8, 64, 512), device)
    yield "catalogue_search", lambda: search_cases(1_000_000, 128, 100, (1, 8, 64, 1024), device)
    yield "catalogue_search", lambda: search_cases(10_000_000, 128, 100, (1, 8), device)


def measure(case: Case, card: Ceilings, clocks: dict[str, Callable[..., Times]] = CLOCKS) -> Iterator[Row]:
    """A row per implementation, clock and round; one row that says so where the op is wrong."""
    about = {"op": case.op, "shape": case.shape, "dtype": case.dtype, "ids": case.ids}
    floor = card.floor_us(case.moved, case.flops)
    about |= {"moved_bytes": case.moved, "logical_bytes": case.logical, "flops": case.flops}
    about["floor_us"] = f"{floor:.3f}"
    try:
        case.check()
    except Exception as error:  # a kernel that does not compile or run is wrong too
        yield {**about, "implementation": "frontrow", "note": f"WRONG, not timed: {in_a_line(error)}"}
        return
    ready, failed = {}, set()
    for name, make in {"frontrow": case.ours, **case.peers}.items():
        try:
            ready[name] = make()
        except Exception as error:
            yield {**about, "implementation": name, "note": in_a_line(error)}
    for round_ in range(1, ROUNDS + 1):
        for name, calls in ready.items():
            for clock, time_it in clocks.items():
                row = {**about, "implementation": name, "clock": clock, "round": round_}
                if (name, clock) in failed:
                    continue
                try:
                    times = time_it(calls)
                except Exception as error:  # a peer that cannot be captured or does not fit says so in its row
                    failed.add((name, clock))
                    yield {**row, "note": in_a_line(error)}
                    continue
                numbers = {"median_us": times.median, "p10_us": times.p10, "p90_us": times.p90}
                yield row | {k: f"{v:.2f}" for k, v in numbers.items()} | {"of_floor": f"{floor / times.median:.3f}"}


def in_a_line(error: Exception) -> str:
    return f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')[:160]}"


def origin(card: Ceilings) -> Row:
    """The columns that say where the numbers come from."""
    import triton

    about = provenance("python -m frontrow.benchmarks.kernels")
    smi = "nvidia-smi --query-gpu=driver_version --format=csv,noheader || echo unknown"
    driver = subprocess.run(smi, shell=True, capture_output=True, text=True).stdout.strip()
    return {
        "copy_TB_s": f"{card.bytes_per_s / 1e12:.2f}",
        "matrix_TFLOP_s": f"{card.flops_per_s / 1e12:.0f}",
        **{"device": about["device"], "driver": driver, "torch": torch.__version__, "triton": triton.__version__},
        **{"commit": about["commit"], "date": about["date"]},
    }


def case_of(row: Row) -> tuple[str, ...]:
    return row["op"], row["shape"], row["dtype"], row["ids"]


def write_rows(path: Path, rows: Iterable[Row], about: Row) -> list[Row]:
    """Rows into a CSV file as they come, so that a run cut short keeps what it has; echoed to the terminal. What the
    file has of other cases stays. Returns all its rows."""
    path.parent.mkdir(parents=True, exist_ok=True)
    kept: list[Row] = []
    if path.exists():
        with path.open(newline="", encoding="utf-8") as file:
            kept = [{name: value for name, value in row.items() if value} for row in csv.DictReader(file)]
    before = {case_of(row) for row in kept}
    for row in rows:
        if case_of(row) in before:
            before.remove(case_of(row))
            kept = [old for old in kept if case_of(old) != case_of(row)]
        kept.append(row | about)
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            writer.writerows(kept)
        shown = (row.get(c, "") for c in ("op", "shape", "dtype", "ids", "implementation", "clock", "median_us"))
        print(*shown, row.get("of_floor", ""), row.get("note", ""), flush=True)
    return kept


def table(rows: list[Row], about: Row) -> str:
    """Markdown: a line per case, the first clocks' medians of every implementation, of the better round."""
    best: dict[tuple[str, ...], dict[tuple[str, str], float]] = {}
    floors, implementations, wrong = {}, [], []
    for row in rows:
        case = case_of(row)
        floors[case] = float(row["floor_us"])
        if row["implementation"] not in implementations:
            implementations.append(row["implementation"])
        if row.get("note", "").startswith("WRONG"):
            wrong.append(case)
        if "median_us" in row:
            key = (row["implementation"], row["clock"])
            times = best.setdefault(case, {})
            times[key] = min(times.get(key, float("inf")), float(row["median_us"]))
    lines = [
        f"{about['device']}, driver {about['driver']}, torch {about['torch']}, Triton {about['triton']}, commit "
        f"{about['commit']}, {about['date']}; copy {about['copy_TB_s']} TB/s, matrix product "
        f"{about['matrix_TFLOP_s']} TFLOP/s. Microseconds, cold L2 / graph replay / host.",
        "",
        "| op | shape | type | ids | floor | of floor, cold | " + " | ".join(implementations) + " |",
        "|" + "---|" * (6 + len(implementations)),
    ]
    for case, floor in floors.items():
        times = best.get(case, {})
        ours = times.get(("frontrow", "cold"))
        share = "wrong" if case in wrong else f"{floor / ours:.0%}" if ours else ""
        cells = [
            " / ".join(f"{times[name, clock]:.1f}" if (name, clock) in times else "–" for clock in CLOCKS)
            for name in implementations
        ]
        lines.append("| " + " | ".join([*case, f"{floor:.1f}", share, *cells]) + " |")
    return "\n".join(lines)


def write_table(text: str, path: Path = README) -> None:
    """Between the two marks of benchmarks/README.md."""
    page = path.read_text("utf-8")
    before, rest = page.split(BEGIN, 1)
    path.write_text(f"{before}{BEGIN}\n{text}\n{END}{rest.split(END, 1)[1]}", "utf-8")


def draw(rows: list[Row], card: Ceilings, folder: Path) -> list[Path]:
    """A roofline per op, if matplotlib is installed: operations per byte against operations per second."""
    try:
        import matplotlib
    except ImportError:
        return []
    matplotlib.use("Agg")
    from matplotlib import pyplot

    paths = []
    for op in dict.fromkeys(row["op"] for row in rows):
        mine = [row for row in rows if row["op"] == op and row.get("clock") == "cold" and "median_us" in row]
        if not mine:
            continue
        figure, axes = pyplot.subplots(figsize=(8, 5), layout="constrained")
        intensity = [2.0**e for e in range(-4, 13)]
        roof = [min(card.flops_per_s, i * card.bytes_per_s) / 1e12 for i in intensity]
        axes.loglog(intensity, roof, color="black", label="measured ceilings")
        for name in dict.fromkeys(row["implementation"] for row in mine):
            of = [row for row in mine if row["implementation"] == name]
            x = [float(row["flops"]) / float(row["moved_bytes"]) for row in of]
            axes.loglog(x, [float(r["flops"]) / float(r["median_us"]) / 1e6 for r in of], "o", alpha=0.7, label=name)
        axes.set(title=f"{op}, cold L2", xlabel="FLOP per least byte", ylabel="TFLOP/s")
        axes.grid(alpha=0.3)
        axes.legend()
        paths.append(folder / f"roofline-{op.replace(' ', '-')}.png")
        figure.savefig(paths[-1], dpi=110)
        pyplot.close(figure)
    return paths


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m frontrow.benchmarks.kernels", description="Kernels against floors and peers."
    )
    groups = list(all_cases())
    parser.add_argument("--op", choices=sorted({name for name, _ in groups}), help="only this op")
    parser.add_argument(
        "--case", default="", help="only cases whose op, shape and type contain this, as in 'N=10000000'"
    )
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out, which takes longest")
    parser.add_argument("--out", type=Path, default=RESULTS, help="where the CSV and the pictures go")
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        print("torch sees no GPU: nothing is measured and nothing is written", file=sys.stderr)
        return 2
    # A stream of its own: the backward pass runs on that of the forward pass, and the default one cannot be captured.
    with torch.cuda.stream(torch.cuda.Stream()):
        card = ceilings()
        about = origin(card)
        print(", ".join(f"{name} {value}" for name, value in about.items()), flush=True)

        def rows() -> Iterator[Row]:
            for name, cases in groups:
                if options.op in (None, name):
                    for case in cases():
                        if options.case in f"{case.op} {case.shape} {case.dtype} {case.ids}":
                            if options.no_compile:
                                case.peers.pop("torch.compile", None)
                            yield from measure(case, card)
                    gc.collect()
                    torch.cuda.empty_cache()

        name = about["device"].replace(" ", "-")
        kept = write_rows(options.out / f"kernels-{name}.csv", rows(), about)
    draw(kept, card, options.out)
    text = table(kept, about)
    (options.out / f"kernels-{name}.md").write_text(text + "\n", "utf-8")
    if options.out == RESULTS:
        write_table(text)
    print(text)
    return int(any(row.get("note", "").startswith("WRONG") for row in kept))


if __name__ == "__main__":
    sys.exit(main())
