"""Is one server slower than another? Both run at once and take turns under the same load: paired rounds.

    frontrow bench serve BUNDLE --compare A B      A, B: folders of two checkouts, or two bundles

Checkouts serve BUNDLE with the packages of this environment, so the one from before needs no installing:

    git worktree add ../before origin/main
    frontrow bench serve bundles/1 --compare ../before .

Why this and not two result files: on shared cores the same server is easily a third slower an hour later, and no
threshold can tell that from a regression. Turns of a second see the same neighbours, and only their ratio counts. One
load, `mixed` requests with a few in flight, goes through every stage, batching included, and keeps it within a minute.
Two measures: pages a second, and pages a second of processor time, which neighbours on the same cores hardly change,
and which does not see waiting. Worse by either is worse.
"""

from __future__ import annotations

import json
import math
import statistics
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..foundation.bundle import MANIFEST, load_bundle
from .provenance import provenance, write_result
from .serve_load import draw_requests, input_data
from .serve_run import Load, Server, measured, serving

ROUNDS, SECONDS, IN_FLIGHT = 10, 1.0, 4
THRESHOLD = 0.1
MEASURES: dict[str, Callable[[dict[str, Any]], float]] = {
    "pages per second": lambda run: run["pages_per_second"],
    "pages per CPU second": lambda run: 1000 / run["cpu_ms_per_page"],
}
CONFIDENCE = 0.95
_EXPECTED = 30.0  # pages a second, before any were measured


@dataclass(frozen=True)
class Verdict:
    """Ratios B / A of paired rounds: their median, and the limits that hold the true median with 95 % confidence or
    more (order statistics; no assumption about their distribution)."""

    median: float
    low: float
    high: float
    worse: bool

    def words(self, threshold: float) -> str:
        if self.worse:
            said = f"worse by more than {threshold:.0%}"
        elif self.low < 1 - threshold:
            said = "too uneven to tell; more --rounds, or a quieter host"
        else:
            said = f"not worse by more than {threshold:.0%}"
        return f"{self.median:.3f} ({self.low:.3f} to {self.high:.3f}): {said}"


def judge(ratios: Sequence[float], threshold: float) -> Verdict:
    """Whether B makes fewer pages than A: `threshold` fewer at the median, and surely fewer at all. Raises ValueError
    for fewer rounds than can be sure of anything."""
    ordered, count = sorted(ratios), len(ratios)
    # How many values may be left out at each end: the chance that the median lies beyond is that of so many heads.
    beyond = [2 * sum(math.comb(count, i) for i in range(out + 1)) / 2**count for out in range(count // 2)]
    if not beyond or beyond[0] > 1 - CONFIDENCE:
        raise ValueError(f"{count} rounds say nothing with {CONFIDENCE:.0%} confidence; give 6 or more")
    out = sum(chance <= 1 - CONFIDENCE for chance in beyond) - 1
    median, low, high = statistics.median(ordered), ordered[out], ordered[-1 - out]
    return Verdict(median, low, high, worse=median < 1 - threshold and high < 1)


def side(bundle: Path, given: Path) -> tuple[Path, Path | None]:
    """(bundle, checkout or None) that A or B stands for. Raises ValueError if it is neither."""
    if (given / MANIFEST).is_file():
        return given, None
    if (given / "clients" / "cli.py").is_file():
        return bundle, given
    raise ValueError(f"--compare {given}: neither a bundle ({MANIFEST}) nor a checkout (clients/cli.py)")


def compare(bundle: Path, a: Path, b: Path, *, threshold: float = THRESHOLD, rounds: int = ROUNDS) -> int:
    """Prints and writes the verdict; 1 if B is worse, else 0."""
    judge([1.0] * rounds, threshold)  # too few rounds are told before any work
    sides = [side(bundle, given) for given in (a, b)]
    runs: list[list[dict[str, Any]]] = [[], []]
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        loads: list[tuple[Server, Path]] = []
        for number, (of, checkout) in enumerate(sides):
            data = scratch / f"{number}.json"
            data.write_text(json.dumps(input_data(draw_requests(load_bundle(of), "mixed"))), "utf-8")
            loads.append((stack.enter_context(serving(of, checkout=checkout)), data))
        expected = [_EXPECTED, _EXPECTED]
        for number in range(-1, rounds):  # the first is not counted: it warms both up
            for i in (0, 1) if number % 2 else (1, 0):  # neither is always the second
                found = measured(*loads[i], Load("concurrency", IN_FLIGHT), SECONDS, expected[i])
                expected[i] = found["pages_per_second"]
                if number >= 0:
                    runs[i].append(found)
    ratios = {name: [of(b) / of(a) for a, b in zip(*runs, strict=True)] for name, of in MEASURES.items()}
    verdicts = {name: judge(found, threshold) for name, found in ratios.items()}
    write_result(
        "serve-compare",
        {
            "what": f"B / A, {IN_FLIGHT} mixed requests in flight, paired rounds",
            "a": str(a), "b": str(b), "threshold": threshold, "ratios": ratios,
            "verdicts": {name: vars(v) for name, v in verdicts.items()},
            "runs": {"a": runs[0], "b": runs[1]},
            **provenance(f"frontrow bench serve {bundle} --compare {a} {b}"),
        },
    )  # fmt: skip
    for side_name, given, of in zip("AB", (a, b), runs, strict=True):
        middle = {name: statistics.median(map(figure, of)) for name, figure in MEASURES.items()}
        print(f"{side_name} {given}: " + ", ".join(f"{value:.1f} {name}" for name, value in middle.items()))
    for name, verdict in verdicts.items():
        print(f"B / A, {name}, {rounds} rounds: {verdict.words(threshold)}")
    return int(any(v.worse for v in verdicts.values()))
