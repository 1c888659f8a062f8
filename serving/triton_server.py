"""Find, start, watch and stop a local Triton Server, and write the model repository that it serves."""

from __future__ import annotations

import errno
import importlib.metadata
import json
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Self

from . import guard
from .guard import DRAIN_SECONDS

if TYPE_CHECKING:
    from tritonclient.grpc import InferenceServerClient

CONTROL_HEADER = "frontrow-control-key"
"""Header that carries the control key: as it is over HTTP, after `triton-grpc-protocol-` over gRPC."""

_PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
# Whoever may load models runs code in the server; trace and logging settings name files for it to write, shared memory
# names memory of this host for it to read and write.
_RESTRICTED = "model-repository,trace,logging,shared-memory"
_STUBS_EVERY_SECONDS = 2.0  # how often check() looks for the models' processes


class ServerError(RuntimeError):
    """Triton Server could not be found, started or kept running."""


class ServerNotFound(ServerError):
    """No usable Triton Server on this host."""


class PortInUse(ServerError):
    """A port that the server needs is taken; the message names the option that changes it."""


class NotReady(ServerError):
    """The server runs, but was not ready in time."""


class ServerDied(ServerError):
    """The server ended by itself; `lines` are the errors it logged."""

    def __init__(self, exit_code: int, log: Path, lines: Sequence[str]) -> None:
        how = f"by signal {-exit_code}" if exit_code < 0 else f"with exit code {exit_code}"
        super().__init__("\n".join([f"Triton Server ended {how}; its log is {log}", *lines]))
        self.exit_code = exit_code
        self.log = log
        self.lines = tuple(lines)


class ModelDied(ServerError):
    """The server runs and says that it is ready, but a model's Python process has ended: all its requests fail."""


@dataclass(frozen=True)
class ServerInstall:
    """A Triton Server with its Python backend, and the environment variables it needs set."""

    executable: Path
    backend_directory: Path
    env: dict[str, str]
    source: Literal["PATH", "wheel"]


def find_tritonserver() -> ServerInstall:
    """The tritonserver on PATH, else that of the nvidia-pytriton wheel, made runnable in a per-user cache.

    Raises ServerNotFound when there is neither, or when the wheel's cannot be laid out.
    """
    # The backend's stub embeds a Python that takes its packages from the first python3 on PATH: this one.
    env = {"PATH": f"{Path(sys.executable).parent}:{os.environ.get('PATH', os.defpath)}"}
    if on_path := shutil.which("tritonserver"):
        executable = Path(on_path).resolve()
        return ServerInstall(executable, executable.parent.parent / "backends", env, "PATH")
    try:
        wheel = importlib.metadata.distribution("nvidia-pytriton")
    except importlib.metadata.PackageNotFoundError:
        raise ServerNotFound(
            "no tritonserver on PATH and no nvidia-pytriton in this Python: "
            "pip install 'frontrow[serve]', or use the Docker image"
        ) from None
    home = _lay_out(Path(str(wheel.locate_file("pytriton/tritonserver"))), wheel.version)
    libpython = find_libpython()
    folders = wheel.locate_file("nvidia_pytriton.libs"), libpython and libpython.parent
    env["LD_LIBRARY_PATH"] = ":".join(str(f) for f in (*folders, os.environ.get("LD_LIBRARY_PATH")) if f)
    return ServerInstall(home / "bin" / "tritonserver", home / "backends", env, "wheel")


def find_libpython() -> Path | None:
    """The shared library of this Python, which the wheel's stub needs; None if there is none."""
    name = f"libpython{_PYTHON}.so.1.0"
    libdir, multiarch = (sysconfig.get_config_var(name) or "" for name in ("LIBDIR", "MULTIARCH"))
    # A Python that was moved after its build (uv, conda) has a LIBDIR of another host; base_prefix is true.
    folders = (Path(sys.base_prefix, "lib"), Path(libdir), Path(libdir, multiarch), Path("/lib", multiarch))
    return next((folder / name for folder in folders if (folder / name).exists()), None)


def _lay_out(wheel: Path, version: str) -> Path:
    """Copies the wheel's server to the cache, with the run bits and the folders that the wheel lacks."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "frontrow"
    home = cache / f"triton-{version}-py{_PYTHON}"
    if home.is_dir():  # complete: it gets this name last
        return home
    stub = wheel / "python_backend_stubs" / _PYTHON / "triton_python_backend_stub"
    if not stub.is_file():
        raise ServerNotFound(f"nvidia-pytriton {version} does not support Python {_PYTHON}: no {stub}")
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as scratch:
            draft = Path(scratch) / "home"
            for folder, file in (
                ("bin", wheel / "bin" / "tritonserver"),
                ("backends/python", stub),
                ("backends/python", wheel / "backends" / "python" / "libtriton_python.so"),
                ("backends/python", wheel / "backends" / "python" / "triton_python_backend_utils.py"),
            ):
                (draft / folder).mkdir(parents=True, exist_ok=True)
                Path(shutil.copyfile(file, draft / folder / file.name)).chmod(0o755)
            draft.rename(home)
    except OSError as error:
        if not home.is_dir():  # else another process was first, with the same files
            raise ServerNotFound(f"cannot write {home}: {error}; set XDG_CACHE_HOME to a folder") from error
    return home


def write_repository(
    bundle_dir: Path,
    destination: Path,
    models: Sequence[str],
    *,
    version: int,
    instances: int = 1,
    queue: int | None = None,
    bfloat16: bool = False,
    templates: Traversable | None = None,
) -> Path:
    """Writes the repository that serves a bundle as `version` of each model; returns `destination`.

    `templates` holds `<model>/config.pbtxt` and `<model>/1/model.py` (default: this package's). A repository
    that is already at `destination` is replaced. On a host with GPUs each GPU gets `instances` of each model,
    and one of `catalogue`.
    `queue`: how many requests may wait in each (default: what gate.py says). `bfloat16`: see precision.py.

    Raises ValueError for a bundle that is no directory, an unknown model, a `version`, `instances` or `queue` below 1,
    and a `destination` that holds anything but a repository.
    """
    templates = templates or resources.files("frontrow.model_repository")
    bundle_dir, destination = bundle_dir.resolve(), destination.absolute()
    if not bundle_dir.is_dir():
        raise ValueError(f"bundle_dir: {bundle_dir} is not a directory")
    if version < 1 or instances < 1 or (queue is not None and queue < 1):
        raise ValueError(f"version, instances and queue must be at least 1, not {version}, {instances} and {queue}")
    if destination.exists() and not all((path / "config.pbtxt").is_file() for path in destination.iterdir()):
        raise ValueError(f"destination: {destination} holds more than a model repository; not replaced")
    known = {path.name for path in templates.iterdir() if path.joinpath("config.pbtxt").is_file()}
    if unknown := sorted(set(models) - known):
        raise ValueError(f"models: no {', '.join(unknown)}; there are {', '.join(sorted(known))}")
    kind = "KIND_GPU" if has_nvidia_gpu() else "KIND_CPU"
    bundle = json.dumps(str(bundle_dir), ensure_ascii=False)  # a valid protobuf text string, too
    destination.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{destination.name}-", dir=destination.parent) as scratch:
        draft = Path(scratch) / "new"
        for model in models:
            config = templates.joinpath(model, "config.pbtxt").read_text()
            if owned := re.search(r"(?m)^\s*(instance_group|version_policy)\b", config):
                raise ValueError(f"{model}/config.pbtxt sets {owned[1]}, which is written here")
            # Names are asked for once a bundle: one process does, and the memory of others is saved.
            count = 1 if model == "catalogue" else instances
            code = draft / model / str(version) / "model.py"
            code.parent.mkdir(parents=True)
            code.write_bytes(templates.joinpath(model, "1", "model.py").read_bytes())
            (draft / model / "config.pbtxt").write_text(
                f"{config.rstrip()}\n\n"
                f"version_policy {{ specific {{ versions: [ {version} ] }} }}\n"
                f"instance_group [ {{ count: {count} kind: {kind} }} ]\n"
                f'parameters {{ key: "bundle_dir" value: {{ string_value: {bundle} }} }}\n'
                + (f'parameters {{ key: "queue" value: {{ string_value: "{queue}" }} }}\n' if queue else "")
                + ('parameters { key: "bfloat16" value: { string_value: "if quick" } }\n' if bfloat16 else "")
            )
        if destination.exists():
            destination.rename(Path(scratch) / "old")
        draft.rename(destination)
    return destination


def has_nvidia_gpu() -> bool:
    """Whether a server started here sees an NVIDIA GPU."""
    return nvidia_gpus() > 0


def nvidia_gpus() -> int:
    """How many NVIDIA GPUs a server started here sees; without torch, whose import takes seconds."""
    there = len(list(Path("/dev").glob("nvidia[0-9]*"))) or int(Path("/dev/dxg").exists())  # dxg: WSL
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return there
    return 0 if visible in ("", "-1") else min(there, len(visible.split(",")))


@dataclass(kw_only=True, eq=False)
class TritonServer:
    """One tritonserver, in a process group of its own; a context manager that starts and stops it.

    Output is appended to `log`. `scratch` is a folder that is removed with the server, however either ends. Callers
    who send `control_key` (empty: ValueError) in CONTROL_HEADER may load further models; users of this host can read
    it in the process list. `threads` sets the threads of OpenMP
    and BLAS in each model instance.
    """

    repository: Path
    load: Sequence[str]
    log: Path
    control_key: str = field(repr=False)
    grpc_port: int = 8001
    http_port: int = 8000
    metrics_port: int = 8002
    host: str = "127.0.0.1"
    threads: int | None = None
    scratch: Path | None = None
    extra_args: Sequence[str] = ()
    name: str = field(default="", init=False)
    _log_start: int | None = field(default=0, init=False)
    _stubs: Counter[str] = field(default_factory=Counter, init=False)
    _looked: float = field(default=0.0, init=False)
    _process: subprocess.Popen[bytes] | None = field(default=None, init=False)
    _guard: socket.socket | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        if not self.control_key:
            raise ValueError("control_key is empty: anybody could load models")

    @property
    def _ports(self) -> dict[str, int]:
        return {"grpc": self.grpc_port, "http": self.http_port, "metrics": self.metrics_port}

    @property
    def pid(self) -> int | None:
        """Process id of the server; None before the first start."""
        return self._process.pid if self._process else None

    def start(self) -> None:
        """Starts the server without waiting for it.

        Raises PortInUse, ServerNotFound, or ServerError when it is already started or a port does not open.
        """
        if self._guard is not None:
            raise ServerError("already started: stop() it first")
        self._check_ports()
        install = find_tritonserver()
        limits = {f"{library}_NUM_THREADS": str(self.threads) for library in ("OMP", "MKL", "OPENBLAS")}
        # Unique: neither its shared memory nor its answers can be taken for those of another run.
        self.name = f"frontrow-{os.getpid()}-{secrets.token_hex(4)}"
        self._stubs = Counter()
        self.log.parent.mkdir(parents=True, exist_ok=True)
        # In a container standard output may be another user's pipe, which cannot be opened a second time.
        with os.fdopen(os.dup(1), "ab") if self.log == Path("/dev/stdout") else self.log.open("ab") as log:
            self._log_start = log.tell() if log.seekable() else None
            ours, theirs = socket.socketpair()
            with theirs:
                self._process = subprocess.Popen(
                    [
                        sys.executable,
                        "-I",
                        "-S",
                        guard.__file__,
                        self.name,
                        str(self.scratch or ""),
                        *self._command(install),
                    ],
                    stdin=theirs.fileno(),
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    env=os.environ | install.env | (limits if self.threads else {}),
                    start_new_session=True,
                )
        self._guard = ours

    def _check_ports(self) -> None:
        if len(set(self._ports.values())) < len(self._ports):
            said = ", ".join(f"--{service}-port {port}" for service, port in self._ports.items())
            raise ServerError(f"the server's ports must differ: {said}")
        taken = []
        for service, port in self._ports.items():
            try:
                socket.create_server((self.host, port)).close()
            except OSError as error:
                place = f"port {port} on {self.host}"
                if error.errno != errno.EADDRINUSE:
                    raise ServerError(f"cannot open {place} (--{service}-port): {error}") from error
                taken.append(f"{place} is in use: choose another with --{service}-port")
        if taken:
            raise PortInUse("; ".join(taken))

    @property
    def address(self) -> str:
        """Where this host reaches its gRPC."""
        return f"{'127.0.0.1' if self.host == '0.0.0.0' else self.host}:{self.grpc_port}"

    def client(self) -> InferenceServerClient:
        """A gRPC client of this server, whatever proxy the environment names; to be closed."""
        from tritonclient.grpc import InferenceServerClient

        # gRPC's own pauses between attempts to connect grow to minutes.
        channel_args = [("grpc.max_reconnect_backoff_ms", 100), ("grpc.enable_http_proxy", 0)]
        return InferenceServerClient(self.address, channel_args=channel_args)

    def wait_ready(self, timeout_s: float, on_tick: Callable[[float], None] | None = None) -> float:
        """Waits until the server and every loaded model are ready; returns the seconds waited.

        Calls `on_tick` with the seconds so far, some ten times a second. Raises ServerDied, or NotReady after
        `timeout_s`; the server then still runs.
        """
        began = time.monotonic()
        with self.client() as client:
            while not self._is_ready(client):
                self.check()
                if (waited := time.monotonic() - began) > timeout_s:
                    raise NotReady(f"Triton Server is not ready after {timeout_s:g} s; its log is {self.log}")
                if on_tick is not None:
                    on_tick(waited)
                time.sleep(0.1)
        self._stubs = self._living_stubs()
        return time.monotonic() - began

    def _is_ready(self, client: InferenceServerClient) -> bool:
        from tritonclient.utils import InferenceServerException

        with suppress(InferenceServerException, OSError):
            host = self.address.rpartition(":")[0]
            socket.create_connection((host, self.metrics_port), 2).close()  # the last that Triton Server opens
            metadata = client.get_server_metadata(as_json=True, client_timeout=2) or {}
            if metadata["name"] == self.name:  # not that of a server that took the port after it was checked
                models = (client.is_model_ready(model, client_timeout=2) for model in self.load)
                return bool(client.is_server_ready(client_timeout=2)) and all(models)
        return False

    def poll(self) -> int | None:
        """Exit code of the server (negative: the signal) once it has ended, else None."""
        return self._process.poll() if self._process else None

    def check(self) -> None:
        """Raises ServerDied when the server has ended, ModelDied when a process of a model that was ready has.

        Triton Server starts no such process anew, and goes on saying that the model is ready.
        """
        code = self.poll()
        if code is not None:
            if self._log_start is None:  # a terminal or pipe, on which the errors stand already
                raise ServerDied(code, self.log, ())
            with self.log.open("rb") as log:
                log.seek(self._log_start)
                raise ServerDied(code, self.log, error_lines(log.read().decode(errors="replace")))
        if self._stubs and time.monotonic() - self._looked > _STUBS_EVERY_SECONDS:
            self._looked = time.monotonic()
            if dead := sorted((self._stubs - self._living_stubs()).keys()):
                raise ModelDied(
                    f"a Python process of {', '.join(map(repr, dead))} has ended (killed, or out of memory?) and "
                    f"Triton Server starts no other: start the server again; its log is {self.log}"
                )

    def _living_stubs(self) -> Counter[str]:
        """How many Python processes each model loaded at the start has now."""
        found: Counter[str] = Counter()
        for process in Path("/proc").glob("[0-9]*/cmdline"):
            with suppress(OSError):  # it has just ended
                program, *words = process.read_bytes().split(b"\0")
                if program.endswith(b"triton_python_backend_stub") and words[1].startswith(self.name.encode()):
                    found[Path(os.fsdecode(words[0])).parts[-3]] += 1
        return Counter({model: found[model] for model in self.load})

    def stop(self, timeout_s: float = 20) -> None:
        """Asks the server to end, and kills its process group after `timeout_s`; nothing of it remains."""
        if self._process is None or self._guard is None:
            return
        self._process.terminate()
        try:
            self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        with self._guard, suppress(OSError):  # the guard clears up now; its end closes when it is done
            self._guard.settimeout(5)
            self._guard.recv(1)
        self._guard = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _command(self, install: ServerInstall) -> list[str]:
        return [
            str(install.executable),
            f"--id={self.name}",
            f"--model-repository={self.repository}",
            f"--backend-directory={install.backend_directory}",
            f"--backend-config=python,shm-region-prefix-name={self.name}-",
            "--model-control-mode=explicit",
            *(f"--load-model={model}" for model in self.load),
            # Configs are complete. Completing them would start every model's Python one more time.
            "--disable-auto-complete-config",
            "--exit-on-error=true",
            "--strict-readiness=true",
            "--metrics-config=summary_latencies=true",  # p50 to p99, which sums cannot tell
            f"--exit-timeout-secs={DRAIN_SECONDS}",
            *(f"--{service}-port={port}" for service, port in self._ports.items()),
            *(f"--{service}-address={self.host}" for service in self._ports),
            f"--grpc-restricted-protocol={_RESTRICTED}:{CONTROL_HEADER}={self.control_key}",
            f"--http-restricted-api={_RESTRICTED}:{CONTROL_HEADER}={self.control_key}",
            *self.extra_args,
        ]


def error_lines(log: str) -> list[str]:
    """What went wrong, from a tritonserver log: the models that failed, else any error, else the end."""
    errors: list[str] = []
    for line in log.splitlines():
        if found := re.match(r'[EF]\d{4} [\d:.]+ \d+ \S+:\d+\] "?(.+?)"?$', line):
            errors.append(found[1].replace(r"\n", "\n").replace(r"\"", '"').strip())
        elif re.search("^error: |error while loading shared libraries|unrecognized option", line):
            errors.append(line)
    causes = [e for e in errors if e.startswith("failed to load '") or "shared libraries" in e]
    return list(dict.fromkeys(causes or errors or filter(str.strip, log.splitlines())))[-5:]
