"""`frontrow serve`: a bundle on Triton Server, in the foreground until it is told to stop."""

from __future__ import annotations

import json
import signal
import time
from contextlib import ExitStack
from pathlib import Path

from ..foundation.bundle import MANIFEST
from ..serving.serve import default_instances, serve_bundle
from . import show
from .ask import GRPC_PORT
from .cli import console, errors


def run_serve(
    path: Path, *, host: str, grpc_port: int, http_port: int, metrics_port: int, log: Path, stages: bool,
    instances: int | None, queue: int | None, bfloat16: bool, control_key: str | None, extra_args: list[str],
) -> None:  # fmt: skip
    """Returns when SIGINT or SIGTERM has stopped it. Raises what `serve_bundle` and the server's `check` raise."""
    stop: list[int] = []
    for name in (signal.SIGINT, signal.SIGTERM):
        signal.signal(name, lambda number, _: _stop(stop, number))
    started = time.monotonic()
    log.parent.mkdir(parents=True, exist_ok=True)
    try:
        with ExitStack() as stack:
            with show.waiting(errors, f"starting Triton Server with {path}"):
                server = stack.enter_context(
                    serve_bundle(
                        path, host=host, grpc_port=grpc_port, http_port=http_port, metrics_port=metrics_port, log=log,
                        stages=stages, instances=instances or default_instances(), queue=queue,
                        bfloat16=bfloat16, control_key=control_key, extra_args=extra_args,
                    )
                )  # fmt: skip
            of = json.loads((path / MANIFEST).read_bytes()).get("data_set")
            where = "localhost" if host in ("0.0.0.0", "127.0.0.1") else host
            at = "" if (where, grpc_port) == ("localhost", GRPC_PORT) else f" --url {where}:{grpc_port}"
            console.print(
                f"ready in {time.monotonic() - started:.1f} s: bundle {path}{f' of {of}' if of else ''}, "
                f"gRPC {host}:{grpc_port}, HTTP {host}:{http_port}, metrics {host}:{metrics_port}/metrics, log {log}\n"
                f"Ctrl-C stops it; ask it in another terminal: frontrow homepage{at} --member 42",
                soft_wrap=True,
                highlight=False,
            )
            while True:
                server.check()
                time.sleep(0.2)
    except _Stopped:
        console.print("stopped")


class _Stopped(BaseException):
    """SIGINT or SIGTERM: unwinds through the server's own clean-up."""


def _stop(seen: list[int], number: int) -> None:
    if not seen:  # a second signal must not interrupt the clean-up
        seen.append(number)
        raise _Stopped
