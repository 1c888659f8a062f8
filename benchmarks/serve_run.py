"""One load on one server: the server as a process, perf_analyzer driven and read, what the server's processes used."""

from __future__ import annotations

import csv
import io
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
import venv
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from .perf_analyzer import find_perf_analyzer, site_packages

WINDOWS = 3  # perf_analyzer reports the last three measurement windows together
# A window is long enough for so many turns of all requests in flight. The answers of a batch come together, so that
# what a short window counts depends on where it begins.
TURNS = 5
ATTEMPTS = 5  # each with windows twice as long: in too short a one no request, or too few, comes to its end
# Columns of perf_analyzer's report, microseconds, and what they are called here, milliseconds.
_LATENCY = {"p50 latency": "p50", "p95 latency": "p95", "p99 latency": "p99", "Avg latency": "mean"}
_SPLIT = {
    "Client Send": "client_send", "Network+Server Send/Recv": "network", "Server Queue": "queue",
    "Server Compute Input": "input", "Server Compute Infer": "infer", "Server Compute Output": "output",
    "Client Recv": "client_receive",
}  # fmt: skip
OPEN = 10_000  # requests that may wait: nobody is refused
_TICKS = os.sysconf("SC_CLK_TCK")
_COUNTED = ("exec_count", "queue_duration_us")  # by Triton Server


class LoadError(RuntimeError):
    """perf_analyzer did not come to an end; the message is what it said."""


@dataclass(frozen=True)
class Load:
    """So many requests in flight always (concurrency), or so many a second at random times (a Poisson rate)."""

    kind: Literal["concurrency", "rate"]
    value: float


class Counts(NamedTuple):
    """Pages and batches made; seconds that requests waited, each by itself, and that batches took."""

    pages: int
    batches: int
    waited: float
    computed: float


@dataclass(frozen=True)
class Server:
    """A `frontrow serve` that is ready. pid: of the launcher; the names of the server's processes hold it. metrics: the
    URL of its metrics. name: what the processes' names hold where a launcher has several servers."""

    address: str
    pid: int
    ready_seconds: float
    metrics: str = ""
    name: str = ""

    def processes(self) -> list[int]:
        """Triton Server and the models' Python processes."""
        found, name = [], (self.name or f"frontrow-{self.pid}-").encode()
        for process in Path("/proc").glob("[0-9]*/cmdline"):
            with suppress(OSError):  # it has just ended
                words = process.read_bytes().split(b"\0")
                if words[0].endswith((b"tritonserver", b"triton_python_backend_stub")) and any(
                    name in word for word in words
                ):
                    found.append(int(process.parent.name))
        return found

    def cpu_seconds(self) -> float:
        """Processor time that they have used, of all cores together."""
        return cpu_seconds(self.processes())

    def memory_mb(self) -> float:
        """Memory that they hold; what several share is counted once (Pss)."""
        return memory_mb(self.processes())

    def counts(self) -> Counts:
        """What `homepage` has done so far."""
        found: dict[str, float] = {}
        for line in urllib.request.urlopen(self.metrics, timeout=10).read().decode().splitlines():
            name, _, value = line.rpartition(" ")
            if name.startswith(("frontrow_", *(f'nv_inference_{of}{{model="homepage"' for of in _COUNTED))):
                found[name] = float(value)
        total = lambda start: sum(value for name, value in found.items() if name.startswith(start))  # noqa: E731
        return Counts(
            int(found['frontrow_homepage_total{what="pages"}']),
            # Of older checkouts, too: from before they counted batches, and when requests waited within the model.
            int(found.get('frontrow_homepage_total{what="batches"}', total("nv_inference_exec_count"))),
            total("nv_inference_queue_duration_us") / 1e6 + total("frontrow_wait_seconds_total"),
            total("frontrow_stage_seconds_total"),
        )


def cpu_seconds(processes: Iterable[int]) -> float:
    """Processor time that processes have used, of all cores together."""
    return sum(_cpu_seconds(Path(f"/proc/{pid}/stat").read_text()) for pid in processes)


def memory_mb(processes: Iterable[int]) -> float:
    """Memory that processes hold; what several share is counted once (Pss)."""
    return sum(_pss_kb(Path(f"/proc/{pid}/smaps_rollup").read_text()) for pid in processes) / 1000


def _cpu_seconds(stat: str) -> float:
    """Of /proc/<pid>/stat, whose second field is the program's name in parentheses and may hold anything."""
    user, system = stat.rpartition(")")[2].split()[11:13]
    return (int(user) + int(system)) / _TICKS


def _pss_kb(rollup: str) -> int:
    return next(int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Pss:"))


def free_ports(count: int) -> list[int]:
    """Ports of this host that nobody listens on now."""
    with ExitStack() as stack:
        taken = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [t.getsockname()[1] for t in taken]


@contextmanager
def serving(
    bundle: Path, instances: int | None = None, checkout: Path | None = None, queue: int | None = OPEN
) -> Iterator[Server]:
    """`frontrow serve` of a bundle until the block ends, by the code of another checkout if one is given, with the
    packages of this environment. instances: None for its default. queue: how many requests may wait; None for its
    default. Raises RuntimeError with what it said if it does not become ready."""
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="frontrow-bench-")))
        grpc, http, metrics = map(str, free_ports(3))
        python = sys.executable if checkout is None else str(python_of(checkout, scratch / "environment"))
        started = time.monotonic()
        with (scratch / "errors").open("w") as errors:
            process = subprocess.Popen(
                [
                    python, "-m", "frontrow.clients.cli", "serve", "--bundle", str(bundle.resolve()),
                    *([] if instances is None else ["--instances", str(instances)]),
                    "--grpc-port", grpc, "--http-port", http, "--metrics-port", metrics,
                    "--log", str(scratch / "server.log"),
                ],
                stdout=subprocess.PIPE, stderr=errors, text=True, cwd=scratch,
                # perf_analyzer gives up when a request is refused; a variable, because older checkouts have no option.
                env={**os.environ, **({} if queue is None else {"FRONTROW_QUEUE": str(queue)})},
            )  # fmt: skip
        try:
            assert process.stdout is not None
            if not any("ready in" in line for line in process.stdout):
                raise RuntimeError(f"{bundle} is not served: {(scratch / 'errors').read_text().strip()}")
            try:
                metrics_url = f"http://127.0.0.1:{metrics}/metrics"
                yield Server(f"127.0.0.1:{grpc}", process.pid, time.monotonic() - started, metrics_url)
            except Exception as error:
                if process.poll() is not None:
                    said = (scratch / "errors").read_text().strip()
                    raise RuntimeError(f"the server of {bundle} ended meanwhile: {said}") from error
                raise
        finally:
            process.send_signal(signal.SIGTERM)
            process.communicate()


def python_of(checkout: Path, folder: Path) -> Path:
    """Makes `folder` an environment whose `frontrow` is the code of a checkout, all else the packages of this one, and
    returns its Python. PYTHONPATH would not do: Triton Server's Python processes ignore it and take the environment of
    the first python3 on their PATH."""
    venv.create(folder, symlinks=True, with_pip=False)
    packages = next((folder / "lib").glob("python*/site-packages"))
    (packages / "this.pth").write_text(f"{site_packages()}\n", "utf-8")  # .pth files over there are not read
    (packages / "frontrow").mkdir()
    (packages / "frontrow" / "__init__.py").touch()
    for part in checkout.resolve().iterdir():
        if (part / "__init__.py").is_file():
            (packages / "frontrow" / part.name).symlink_to(part)
    return folder / "bin" / "python"


def measured(server: Server, data: Path, load: Load, seconds: float, pages_per_second: float) -> dict[str, Any]:
    """A load's throughput, latencies, split, and what the server used for it.

    data: an input-data file. pages_per_second: about what to expect, for windows that are long enough. Raises
    LoadError, also for a single refused request: perf_analyzer then gives up.
    """
    in_flight = load.value if load.kind == "concurrency" else 1
    window = max(seconds / WINDOWS, TURNS * in_flight / pages_per_second)
    for attempt in range(ATTEMPTS):
        before, used = server.counts(), server.cpu_seconds()
        try:
            found = reported(server.address, data, load, window * 2**attempt)
        except LoadError as error:
            if attempt + 1 == ATTEMPTS or "stable" not in str(error):
                raise
            continue
        used, now = server.cpu_seconds() - used, server.counts()
        pages, batches = now.pages - before.pages, now.batches - before.batches
        per_page = used / pages
        return {
            **found,
            "mean_batch": round(pages / batches, 2),
            "wait_ms": round(1000 * (now.waited - before.waited) / pages, 3),
            "batch_ms": round(1000 * (now.computed - before.computed) / batches, 3),
            "cpu_ms_per_page": round(per_page * 1000, 3),
            "cpu_percent": round(100 * per_page * found["pages_per_second"], 1),
            "memory_mb": round(server.memory_mb(), 1),
        }
    raise AssertionError("the last attempt returns or raises")


def reported(address: str, data: Path, load: Load, window: float) -> dict[str, Any]:
    """What perf_analyzer says of a load on the model `homepage` there, in windows of so many seconds (`parse_report`).
    Raises LoadError."""
    with tempfile.TemporaryDirectory() as scratch:
        report = Path(scratch) / "report.csv"
        how = {
            "concurrency": ["--concurrency-range", f"{load.value:.0f}"],
            "rate": ["--request-rate-range", f"{load.value:g}", "--request-distribution", "poisson"],
        }
        command = [
            str(find_perf_analyzer()), "-m", "homepage", "-i", "grpc", "-u", address, "--input-data", str(data),
            *how[load.kind],
            # Asynchronous: requests of a rate start on time, however many are on the way. Any three windows count as
            # stable: the spread is that of whole rounds, which shows more than perf_analyzer's own rule.
            "-a", "-s", "999", "-r", str(WINDOWS), "-p", f"{window * 1000:.0f}", "--verbose-csv", "-f", str(report),
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, errors="replace")
        if done.returncode or not report.is_file():
            said = [line for line in (done.stdout + done.stderr).splitlines() if line and "WARNING" not in line]
            raise LoadError(f"perf_analyzer, {load.kind} {load.value:g}: {' '.join(said[-3:])}")
        return parse_report(report.read_text())


def parse_report(text: str) -> dict[str, Any]:
    """Throughput, latencies and split in milliseconds of the one load in a CSV of perf_analyzer. Raises LoadError."""
    lines = list(csv.DictReader(io.StringIO(text)))
    if len(lines) != 1:
        raise LoadError(f"perf_analyzer reports {len(lines)} loads, not 1")
    line = lines[0]
    if missing := [name for name in ("Inferences/Second", *_LATENCY, *_SPLIT) if name not in line]:
        raise LoadError(f"perf_analyzer's report lacks {missing}; it has {list(line)}")
    return {
        "pages_per_second": round(float(line["Inferences/Second"]), 2),
        "latency_ms": {ours: float(line[theirs]) / 1000 for theirs, ours in _LATENCY.items()},
        "split_ms": {ours: float(line[theirs]) / 1000 for theirs, ours in _SPLIT.items()},
    }
