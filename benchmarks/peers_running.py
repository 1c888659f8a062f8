"""Servers to compare, each started and stopped in the same way: ours, and the peers of serve_peers.py."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from ..serving.requests import PageRequest
from ..serving.triton_server import find_tritonserver
from .scratch_repository import Model, models_serving
from .serve_client import Target, ask, encoded
from .serve_run import free_ports, serving

OURS = "frontrow serve"
OURS_ONCE = "frontrow serve --instances 1"
PEERS = ("python backend", "FastAPI", "grpcio", "pytriton")
READY_SECONDS = 120


@dataclass(frozen=True)
class Running:
    """A server that answers. processes: those that belong to it."""

    target: Target
    processes: Callable[[], list[int]]


def descendants(pid: int) -> list[int]:
    """A process and all that it started."""
    found = [pid]
    for parent in found:
        for file in Path(f"/proc/{parent}/task").glob("*/children"):
            with suppress(OSError):
                found += map(int, file.read_text().split())
    return found


@contextmanager
def running(peer: str, bundle: Path, processes: int = 1, threads: int = 1) -> Iterator[Running]:
    """A server of a bundle until the block ends; ours chooses processes and threads itself. Raises RuntimeError with
    what the server said if it does not answer."""
    if peer in (OURS, OURS_ONCE):
        with serving(bundle, 1 if peer == OURS_ONCE else None) as server:
            yield Running(Target("kserve", (server.address,)), server.processes)
    elif peer == "python backend":
        model = Model("homepage", "plain_homepage.py", batching=False)
        with models_serving(bundle, [model], instances=processes, threads=threads) as server:
            yield Running(Target("kserve", (server.address,)), server.processes)
    else:
        with _process(peer.lower(), bundle, processes, threads) as found:
            yield found


@contextmanager
def _process(kind: str, bundle: Path, processes: int, threads: int) -> Iterator[Running]:
    """Processes of peer_servers.py, each with a port of its own."""
    ports = free_ports(processes)
    command = [sys.executable, "-m", "frontrow.benchmarks.peer_servers", kind, str(bundle.resolve())]
    commands = [[*command, "--port", str(port)] for port in ports]
    environment = os.environ | find_tritonserver().env  # which pytriton's server needs, too
    environment |= {f"{library}_NUM_THREADS": str(threads) for library in ("OMP", "MKL", "OPENBLAS")}
    addresses = tuple(f"127.0.0.1:{port}" for port in ports)
    target = Target("json" if kind == "fastapi" else "kserve", addresses, sends_empty=kind != "pytriton")
    with tempfile.TemporaryDirectory(prefix="frontrow-bench-") as scratch:
        log = Path(scratch) / "log"
        with log.open("wb") as out:
            started = [
                subprocess.Popen(c, stdout=out, stderr=out, env=environment, cwd=scratch, start_new_session=True)
                for c in commands
            ]
        try:
            _wait(target, started, log)
            yield Running(target, lambda: [pid for p in started for pid in descendants(p.pid)])
        finally:
            for p in started:
                _end(p)


def _wait(target: Target, started: Sequence[subprocess.Popen[bytes]], log: Path) -> None:
    """Until each address answers a request."""
    deadline = time.monotonic() + READY_SECONDS
    waiting = list(target.addresses)
    while waiting:
        try:
            one = replace(target, addresses=(waiting[0],))
            ask(one, [encoded(one, PageRequest(rows=1, titles=1))])
            del waiting[0]
        except Exception as error:  # of whichever library: not there yet, or wrong, which the log tells
            if time.monotonic() > deadline or any(p.poll() is not None for p in started):
                raise RuntimeError(f"no answer from {waiting[0]}: {error}; {log.read_text()[-2000:]}") from error
            time.sleep(0.3)


def _end(process: subprocess.Popen[bytes]) -> None:
    everything = descendants(process.pid)
    process.send_signal(signal.SIGTERM)
    with suppress(subprocess.TimeoutExpired):
        process.wait(20)
    for pid in everything:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.wait()
