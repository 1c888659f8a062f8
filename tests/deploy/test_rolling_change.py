"""Two real servers behind one name, started as the Deployment starts them: one goes, and no request fails."""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from deploy_files import KUBERNETES, entrypoint, load_yaml
from frontrow.clients import FrontrowError, HomepageClient, transport
from frontrow.serving.triton_server import ServerNotFound, find_tritonserver
from name_server import NameServer
from server_process import FRONTROW, READY_SECONDS, eventually, free_ports, options

grpc = pytest.importorskip("tritonclient.grpc", reason="tritonclient[grpc] is not installed")
try:
    find_tritonserver()
except ServerNotFound as error:
    pytest.skip(str(error), allow_module_level=True)

OLD, NEW = "127.0.0.1", "127.0.0.2"


@pytest.fixture
def pods(tiny_bundle: Path, tmp_path: Path) -> Iterator[tuple[int, dict[str, subprocess.Popen[str]]]]:
    """The port, and the process of each address, once both are ready. Log and errors are what a pod's log would be."""
    (deployment,) = load_yaml((KUBERNETES / "base" / "deployment.yaml").read_text("utf-8"))
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    ports = free_ports()
    processes = {}
    for address in (OLD, NEW):
        words = [FRONTROW, *entrypoint()[1:], "--host", address, "--bundle", tiny_bundle, *options(ports)]
        args = [a.replace("age=20000", "age=500") for a in container["args"]]  # seconds are too long for a test
        assert args != container["args"]
        with (tmp_path / address).open("w") as log:
            processes[address] = subprocess.Popen(
                [*map(str, words), *args], cwd=tmp_path, text=True, stdout=log, stderr=log, start_new_session=True
            )
    try:
        for address, process in processes.items():
            log = tmp_path / address
            said = eventually(lambda log=log, p=process: "ready in" in log.read_text() or p.poll() is not None,
                              READY_SECONDS)  # fmt: skip
            assert said, log.read_text()[-2000:]
            assert process.poll() is None, log.read_text()[-2000:]
            assert "Started GRPCInferenceService" in log.read_text(), "Triton Server's log is in the pod's"
        yield ports["grpc_port"], processes
    finally:
        for process in processes.values():
            process.terminate()
        for process in processes.values():
            process.wait(40)


def answered(address: str, port: int) -> int:
    """How many pages a server has made."""
    with grpc.InferenceServerClient(f"{address}:{port}") as client:
        (found,) = client.get_inference_statistics("homepage").model_stats
        return found.inference_count


@pytest.mark.long
def test_a_replica_that_goes_fails_no_request(
    pods: tuple[int, dict[str, subprocess.Popen[str]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    port, processes = pods
    often = [(k, 100) if k == "grpc.dns_min_time_between_resolutions_ms" else (k, v) for k, v in transport._BALANCED]
    monkeypatch.setattr(transport, "_BALANCED", often)
    stop, pages, errors = threading.Event(), [], []

    def ask(client: HomepageClient, member: int) -> None:
        while not stop.is_set():
            try:
                pages.append(client.homepage(member, rows=2).member_id)
            except FrontrowError as error:
                errors.append(error)

    before = {address: answered(address, port) for address in processes}
    with NameServer([OLD, NEW]) as names, HomepageClient(names.url(port), timeout_s=20) as client:
        threads = [threading.Thread(target=ask, args=(client, 1000 + i)) for i in range(3)]
        for thread in threads:
            thread.start()
        try:
            assert eventually(lambda: all(answered(a, port) > n + 5 for a, n in before.items()), 30), "both are asked"
            names.addresses.remove(OLD)  # what Kubernetes does first, while preStop sleeps

            def nobody_asks() -> bool:
                then = answered(OLD, port)
                time.sleep(0.5)
                return answered(OLD, port) == then

            assert eventually(nobody_asks, 30), "clients go on asking it"
            processes[OLD].terminate()
            assert processes[OLD].wait(40) == 0
            done = len(pages)
            assert eventually(lambda: len(pages) > done + 5, 30), "the other goes on"
        finally:
            stop.set()
            for thread in threads:
                thread.join()
    assert errors == []
