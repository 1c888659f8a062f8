"""A real Triton Server, started on a trivial Python model."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TypedDict

import numpy as np
import pytest
from frontrow.serving import guard, triton_server
from frontrow.serving.triton_server import (
    CONTROL_HEADER,
    ModelDied,
    NotReady,
    PortInUse,
    ServerDied,
    ServerError,
    ServerNotFound,
    TritonServer,
    error_lines,
    find_tritonserver,
    write_repository,
)
from toy_models import write_toy_models

grpc = pytest.importorskip("tritonclient.grpc", reason="tritonclient[grpc] is not installed")
try:
    find_tritonserver()
except ServerNotFound as error:
    pytest.skip(str(error), allow_module_level=True)

LAUNCHER = """
import sys, time
from pathlib import Path
from frontrow.serving.triton_server import TritonServer

repository, log, grpc_port, http_port, metrics_port = sys.argv[1:]
ports = dict(grpc_port=int(grpc_port), http_port=int(http_port), metrics_port=int(metrics_port))
server = TritonServer(repository=Path(repository), load=["echo"], log=Path(log), control_key="key", **ports)
server.start()
server.wait_ready(30)
print(server.pid, flush=True)
time.sleep(600)
"""


class Ports(TypedDict):
    grpc_port: int
    http_port: int
    metrics_port: int


@pytest.fixture
def ports() -> Ports:
    return free_ports()


def free_ports() -> Ports:
    with ExitStack() as stack:
        taken = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(3)]
        numbers = [taken_port.getsockname()[1] for taken_port in taken]
    return Ports(grpc_port=numbers[0], http_port=numbers[1], metrics_port=numbers[2])


@pytest.fixture(scope="module")
def templates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_toy_models(tmp_path_factory.mktemp("templates"))


@pytest.fixture(scope="module")
def repository(templates: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("serving")
    bundle = home / 'a "bundle" é'
    bundle.mkdir()
    models = ["echo", "corrupt", "stubborn"]
    return write_repository(bundle, home / "models", models, version=7, templates=templates)


Started = tuple[TritonServer, Ports]


@pytest.fixture(scope="module")
def running(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Started]:
    """One server for the tests that only talk to it."""
    ports = free_ports()
    log = tmp_path_factory.mktemp("log") / "server.log"
    with TritonServer(
        repository=repository, load=["echo"], log=log, control_key="secret", threads=1, **ports
    ) as server:
        server.wait_ready(30)
        yield server, ports


def infer(port: int, x: np.ndarray) -> tuple[np.ndarray, list[str]]:
    with grpc.InferenceServerClient(f"127.0.0.1:{port}") as client:
        tensor = grpc.InferInput("X", x.shape, "FP32")
        tensor.set_data_from_numpy(x)
        answer = client.infer("echo", [tensor], client_timeout=10)
        return answer.as_numpy("Y"), [text.decode() for text in answer.as_numpy("ABOUT")[0]]


def processes(group: int) -> list[str]:
    """Command lines of the processes of a group; the dead that wait for their parent do not count."""
    listing = subprocess.run(["ps", "-wweo", "pgid=,stat=,args="], capture_output=True, text=True, check=True)
    rows = (line.split(maxsplit=2) for line in listing.stdout.splitlines())
    return [row[2] for row in rows if int(row[0]) == group and not row[1].startswith("Z")]


def shared_memory(name: str) -> list[Path]:
    return list(Path("/dev/shm").glob(f"{name}-*"))


def eventually(condition: Callable[[], bool], seconds: float = 10) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def has_guard(name: str) -> bool:
    listing = subprocess.run(["ps", "-wweo", "args="], capture_output=True, text=True, check=True).stdout
    return f"{guard.__file__} {name} " in listing


# --- A server that runs ---


def test_answers_an_inference_with_the_values_of_the_generated_repository(running: Started) -> None:
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    y, (version, bundle, threads) = infer(running[1]["grpc_port"], x)
    np.testing.assert_array_equal(y, x)
    assert version == "7"
    assert Path(bundle).name == 'a "bundle" é'
    assert threads == "1"


def test_model_control_needs_the_key(running: Started) -> None:
    server, ports = running
    with grpc.InferenceServerClient(f"127.0.0.1:{ports['grpc_port']}") as client:
        with pytest.raises(grpc.InferenceServerException, match="restricted"):
            client.load_model("echo")
        client.load_model("echo", headers={f"triton-grpc-protocol-{CONTROL_HEADER}": server.control_key})
        assert client.is_model_ready("echo", "7")


def test_shared_memory_of_the_host_needs_the_key_too(running: Started) -> None:
    with grpc.InferenceServerClient(f"127.0.0.1:{running[1]['grpc_port']}") as client:
        with pytest.raises(grpc.InferenceServerException, match="restricted"):
            client.register_system_shared_memory("mine", "/mine", 64)
        with pytest.raises(grpc.InferenceServerException, match="restricted"):
            client.get_system_shared_memory_status()
    url = f"http://127.0.0.1:{running[1]['http_port']}/v2/systemsharedmemory/status"
    with pytest.raises(urllib.error.HTTPError, match="403"):
        urllib.request.urlopen(url, timeout=10)


def test_a_model_whose_process_is_killed_is_noticed(repository: Path, tmp_path: Path, ports: Ports) -> None:
    """Triton Server itself goes on saying that it is ready."""
    server = TritonServer(repository=repository, load=["echo"], log=tmp_path / "log", control_key="k", **ports)
    with server:
        server.wait_ready(30)
        server.check()
        (stub,) = [int(p.parent.name) for p in Path("/proc").glob("[0-9]*/cmdline") if is_stub(p, server.name)]
        os.kill(stub, signal.SIGKILL)
        time.sleep(triton_server._STUBS_EVERY_SECONDS + 0.5)
        with pytest.raises(ModelDied, match=r"a Python process of 'echo' has ended .* its log is"):
            server.check()
        assert server.poll() is None


def is_stub(cmdline: Path, name: str) -> bool:
    try:
        words = cmdline.read_bytes()
    except OSError:
        return False
    return b"python_backend_stub" in words.split(b"\0")[0] and name.encode() in words


def test_every_taken_port_is_named_and_ports_that_are_the_same(
    running: Started, repository: Path, tmp_path: Path
) -> None:
    def start(**ports: int) -> None:
        TritonServer(repository=repository, load=["echo"], log=tmp_path / "log", control_key="k", **ports).start()

    taken = running[1]
    both = rf"port {taken['grpc_port']} .*--grpc-port; port {taken['http_port']} .*--http-port$"
    with pytest.raises(PortInUse, match=both):
        start(**{**free_ports(), "grpc_port": taken["grpc_port"], "http_port": taken["http_port"]})
    with pytest.raises(ServerError, match="ports must differ: --grpc-port 8001, --http-port 8001, --metrics-port 8002"):
        start(http_port=8001)


def test_a_taken_port_is_named_with_its_option(running: Started, repository: Path, tmp_path: Path) -> None:
    taken = running[1]["grpc_port"]
    second = TritonServer(
        repository=repository,
        load=["echo"],
        log=tmp_path / "log",
        control_key="k",
        **{**free_ports(), "grpc_port": taken},
    )
    with pytest.raises(PortInUse, match=rf"port {taken} .*--grpc-port"):
        second.start()
    assert second.pid is None


def test_readiness_is_not_taken_from_another_server_on_the_port(running: Started, repository: Path) -> None:
    server, ports = running
    impostor = TritonServer(repository=repository, load=["echo"], log=server.log, control_key="k", **ports)
    with pytest.raises(NotReady):
        impostor.wait_ready(0.5)


# --- Ends ---


def test_stop_leaves_nothing_and_the_server_starts_again(repository: Path, tmp_path: Path, ports: Ports) -> None:
    server = TritonServer(repository=repository, load=["echo"], log=tmp_path / "log", control_key="k", **ports)
    ticks: list[float] = []
    # Started by a thread that ends at once: the server must not go with it.
    starter = threading.Thread(target=server.start)
    starter.start()
    starter.join()
    try:
        server.wait_ready(30, ticks.append)
        assert ticks == sorted(ticks)
        assert ticks
        assert server.pid is not None
        assert any("triton_python_backend_stub" in line for line in processes(server.pid))
        assert shared_memory(server.name)
        assert has_guard(server.name)
        assert server.poll() is None
    finally:
        server.stop()
    assert server.poll() == 0
    assert processes(server.pid) == []
    assert not shared_memory(server.name)
    assert not has_guard(server.name)
    server.stop()  # a second time does nothing

    with server:  # on the same ports
        server.wait_ready(30)
        os.kill(server.pid, signal.SIGKILL)
        assert eventually(lambda: server.poll() is not None)
        with pytest.raises(ServerDied, match="by signal 9"):
            server.check()
    assert processes(server.pid) == []
    assert not shared_memory(server.name)


def test_a_server_that_does_not_end_is_killed_with_its_stubs(repository: Path, tmp_path: Path, ports: Ports) -> None:
    server = TritonServer(repository=repository, load=["stubborn"], log=tmp_path / "log", control_key="k", **ports)
    with server:
        server.wait_ready(30)
        assert server.pid is not None
        began = time.monotonic()
        server.stop(timeout_s=1)
        assert time.monotonic() - began < 5
    assert server.poll() == -signal.SIGKILL
    assert processes(server.pid) == []
    assert not shared_memory(server.name)
    assert not has_guard(server.name)


def test_a_model_that_fails_to_initialize_is_quoted(repository: Path, tmp_path: Path, ports: Ports) -> None:
    log = tmp_path / "deep" / "server.log"
    server = TritonServer(repository=repository, load=["corrupt"], log=log, control_key="k", **ports)
    with server, pytest.raises(ServerDied, match=r"titles\.safetensors is corrupt") as died:
        server.wait_ready(30)
    assert died.value.exit_code == 1
    assert died.value.log == log
    assert died.value.lines[0].startswith("failed to load 'corrupt' version 7")
    assert str(log) in str(died.value)


def test_only_the_errors_of_this_run_are_quoted(repository: Path, tmp_path: Path, ports: Ports) -> None:
    log = tmp_path / "server.log"
    log.write_text("E1121 11:09:14.984262 3280 model_lifecycle.cc:642] \"failed to load 'old' version 1\"\n")
    server = TritonServer(
        repository=repository, load=[], log=log, control_key="k", extra_args=["--no-such-option"], **ports
    )
    with server, pytest.raises(ServerDied) as died:
        server.wait_ready(30)
    assert "no-such-option" in str(died.value)
    assert "old" not in str(died.value)


def test_a_killed_launcher_leaves_no_server(repository: Path, tmp_path: Path, ports: Ports) -> None:
    arguments = [str(repository), str(tmp_path / "log"), *map(str, ports.values())]
    with subprocess.Popen([sys.executable, "-c", LAUNCHER, *arguments], stdout=subprocess.PIPE, text=True) as launcher:
        try:
            assert launcher.stdout is not None
            server = int(launcher.stdout.readline())
            assert len(processes(server)) == 2  # tritonserver and a stub
            assert shared_memory(f"frontrow-{launcher.pid}")
        finally:
            launcher.kill()
    assert eventually(lambda: not processes(server))
    assert eventually(lambda: not shared_memory(f"frontrow-{launcher.pid}"))


# --- Without a server ---


def test_an_empty_control_key_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="control_key"):
        TritonServer(repository=tmp_path, load=[], log=tmp_path / "log", control_key="")


def test_the_control_key_is_not_shown(tmp_path: Path) -> None:
    server = TritonServer(repository=tmp_path, load=[], log=tmp_path / "log", control_key="hunter2")
    assert "hunter2" not in repr(server)


@pytest.mark.parametrize(
    ("log", "expected"),
    [
        pytest.param(
            'E1121 11:09:13.3 32 server.cc:241] "CudaDriverHelper has not been initialized."\n'
            "E1121 11:09:14.9 32 model_lifecycle.cc:642] \"failed to load 'a' version 1: Internal: KeyError: "
            '\\"x\\"\\n\\nAt:\\n  model.py(3): initialize\\n"\n'
            "error: creating server: Invalid argument\n",
            ["failed to load 'a' version 1: Internal: KeyError: \"x\"\n\nAt:\n  model.py(3): initialize"],
            id="failed-model-before-other-errors",
        ),
        pytest.param(
            "stub: error while loading shared libraries: libpython3.11.so.1.0: no such file\n"
            'E1121 11:09:14.9 32 stub.cc:1] "Stub process is not healthy."\n',
            ["stub: error while loading shared libraries: libpython3.11.so.1.0: no such file"],
            id="missing-library",
        ),
        pytest.param("one\n\ntwo\n", ["one", "two"], id="no-error-shows-the-end"),
        pytest.param("", [], id="empty"),
    ],
)
def test_error_lines(log: str, expected: list[str]) -> None:
    assert error_lines(log) == expected


def test_the_wheel_is_laid_out_once_and_leaves_site_packages_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if find_tritonserver().source == "PATH":
        pytest.skip("tritonserver is on PATH, so the wheel is not used")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    first = find_tritonserver()
    assert first.executable.is_relative_to(tmp_path)
    backend = first.backend_directory / "python"
    for program in (first.executable, backend / "triton_python_backend_stub"):
        assert os.access(program, os.X_OK)
    assert {"libtriton_python.so", "triton_python_backend_utils.py"} <= {path.name for path in backend.iterdir()}
    written = first.executable.stat().st_mtime_ns
    assert find_tritonserver() == first
    assert first.executable.stat().st_mtime_ns == written
    assert [path.name for path in (tmp_path / "frontrow").iterdir()] == [first.backend_directory.parent.name]


def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if find_tritonserver().source == "PATH":
        pytest.skip("tritonserver is on PATH, so the wheel is not used")
    (tmp_path / "frontrow").write_text("a file where the folder should be")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(ServerNotFound, match="XDG_CACHE_HOME"):
        find_tritonserver()


def test_tritonserver_on_path_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    executable = tmp_path / "bin" / "tritonserver"
    executable.parent.mkdir()
    executable.touch(0o755)
    monkeypatch.setenv("PATH", f"{executable.parent}:{os.environ['PATH']}")
    found = find_tritonserver()
    assert (found.source, found.executable) == ("PATH", executable)
    assert found.backend_directory == tmp_path / "backends"
    assert found.env["PATH"].startswith(f"{Path(sys.executable).parent}:")
