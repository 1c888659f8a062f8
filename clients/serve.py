"""`frontrow serve`: a bundle on Triton Server, in the foreground until it is told to stop."""

from __future__ import annotations

import json
import signal
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from ..foundation.bundle import MANIFEST, newest_bundle
from ..serving.serve import change_bundle, default_instances, serve_bundle
from ..serving.triton_server import ServerError, TritonServer
from . import show
from .ask import GRPC_PORT
from .cli import console, errors


def run_serve(
    bundle: Path | None, bundles: Path, *, host: str, grpc_port: int, http_port: int, metrics_port: int, log: Path,
    stages: bool, instances: int | None, queue: int | None, bfloat16: bool, control_key: str | None,
    extra_args: list[str],
) -> None:  # fmt: skip
    """Serves `bundle`, or the newest of `bundles`; at SIGUSR1, what that is then. Returns when SIGINT or SIGTERM has
    stopped it. Raises what `serve_bundle` and the server's `check` raise."""
    stop: list[int] = []
    for name in (signal.SIGINT, signal.SIGTERM):
        signal.signal(name, lambda number, _: _stop(stop, number))
    change: list[int] = []
    signal.signal(signal.SIGUSR1, lambda number, _: change.append(number))
    path, model = bundle or newest_bundle(bundles), {"instances": instances or default_instances(), "queue": queue}
    started = time.monotonic()
    log.parent.mkdir(parents=True, exist_ok=True)
    try:
        with ExitStack() as stack:
            with show.waiting(errors, f"starting Triton Server with {path}"):
                server = stack.enter_context(
                    serve_bundle(
                        path, host=host, grpc_port=grpc_port, http_port=http_port, metrics_port=metrics_port, log=log,
                        stages=stages, bfloat16=bfloat16, control_key=control_key, extra_args=extra_args, **model,
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
            served = path.resolve()  # now: a link may be changed
            while True:
                server.check()
                if change:
                    change.clear()
                    served = _changed(server, served, bundle, bundles, bfloat16=bfloat16, **model)
                time.sleep(0.2)
    except _Stopped:
        console.print("stopped")


def _changed(server: TritonServer, before: Path, bundle: Path | None, bundles: Path, **model: Any) -> Path:
    """The bundle that is served from now on: the one before if a new one is not there, or is not whole."""
    try:
        path = (bundle or newest_bundle(bundles)).resolve()
        if path == before:
            console.print(f"still {before}: there is no newer bundle", soft_wrap=True, highlight=False)
            return before
        with show.waiting(errors, f"changing to {path}"):
            change_bundle(server, path, **model)
    except (OSError, ValueError, ServerError) as error:
        errors.print(f"still {before}: {error}", soft_wrap=True, highlight=False, markup=False)
        return before
    console.print(f"changed to {path}", soft_wrap=True, highlight=False)
    return path


class _Stopped(BaseException):
    """SIGINT or SIGTERM: unwinds through the server's own clean-up."""


def _stop(seen: list[int], number: int) -> None:
    if not seen:  # a second signal must not interrupt the clean-up
        seen.append(number)
        raise _Stopped
