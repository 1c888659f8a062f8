"""`frontrow serve` as a process, for tests: ports, its ready line, and what it must not leave behind."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

FRONTROW = Path(sys.executable).with_name("frontrow")
READY_SECONDS = 90


def free_ports() -> dict[str, int]:
    """Three ports that nobody listens on, by the name of their option."""
    with ExitStack() as stack:
        taken = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(3)]
        return dict(zip(("grpc_port", "http_port", "metrics_port"), (t.getsockname()[1] for t in taken), strict=True))


def options(ports: dict[str, int]) -> list[str]:
    """--grpc-port 8001 …"""
    return [word for name, port in ports.items() for word in (f"--{name.replace('_', '-')}", str(port))]


def start(bundle: Path, folder: Path, ports: dict[str, int], frontrow: Path = FRONTROW) -> subprocess.Popen[str]:
    """`frontrow serve` in a folder, its temporary files below it."""
    (folder / "tmp").mkdir(exist_ok=True)
    return subprocess.Popen(
        [str(frontrow), "serve", "--bundle", str(bundle), *options(ports), "--log", str(folder / "server.log")],
        cwd=folder, env={**os.environ, "TMPDIR": str(folder / "tmp")}, text=True,
        stdout=(folder / "out").open("w"), stderr=(folder / "err").open("w"), start_new_session=True,
    )  # fmt: skip


def wait_ready(process: subprocess.Popen[str], folder: Path) -> str:
    """The ready line."""
    found = eventually(lambda: "ready in" in (folder / "out").read_text() or process.poll() is not None, READY_SECONDS)
    out, err = (folder / "out").read_text(), (folder / "err").read_text()
    assert found, f"not ready after {READY_SECONDS} s: {out}{err}"
    assert process.poll() is None, f"ended with {process.returncode}: {out}{err}"
    return next(line for line in out.splitlines() if "ready in" in line)


def left_behind(process: subprocess.Popen[str], folder: Path) -> list[str]:
    """Processes, shared memory and temporary files of a `frontrow serve`; the server's name holds the pid."""
    name = f"frontrow-{process.pid}-"
    listing = subprocess.run(["ps", "-wweo", "stat=,args="], capture_output=True, text=True, check=True).stdout
    processes = [line for line in listing.splitlines() if name in line and not line.startswith("Z")]
    return [*processes, *map(str, Path("/dev/shm").glob(f"{name}*")), *map(str, (folder / "tmp").iterdir())]


def eventually(condition: Callable[[], bool], seconds: float = 15) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True
