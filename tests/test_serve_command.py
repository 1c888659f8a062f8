"""`frontrow serve` and what it is made of: starts on a whole bundle only, says so, and leaves nothing behind."""

from __future__ import annotations

import hashlib
import json
import os
import pty
import re
import select
import shutil
import signal
import subprocess
import urllib.request
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from frontrow.clients import HomepageClient, ServerUnavailable
from frontrow.foundation.bundle import BundleError, manifest_sha256
from frontrow.serving.gate import QUEUE_FULL
from frontrow.serving.serve import WrongAnswer, prove, serve_bundle
from frontrow.serving.triton_server import ServerDied, ServerNotFound, TritonServer, find_tritonserver
from server_process import FRONTROW, eventually, free_ports, left_behind, options, start, wait_ready
from tritonclient.utils import InferenceServerException

try:
    find_tritonserver()
except ServerNotFound as error:
    pytest.skip(str(error), allow_module_level=True)

# --- A bundle that is not whole ---


def flip_a_byte(bundle: Path) -> None:
    file = bundle / "vectors.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def cut_short(bundle: Path) -> None:
    file = bundle / "members.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def of_another_product(bundle: Path) -> None:
    change_manifest(bundle, format="keras")


def change_manifest(bundle: Path, **changes: Any) -> None:
    manifest = json.loads((bundle / "manifest.json").read_text())
    manifest = {k: v for k, v in {**manifest, **changes}.items() if v is not ...}
    manifest["manifest_sha256"] = manifest_sha256(manifest)
    (bundle / "manifest.json").write_text(json.dumps(manifest))


def edit_the_manifest(bundle: Path) -> None:
    file = bundle / "manifest.json"
    file.write_text(file.read_text().replace('"SQfp16"', '"SQfp17"'))


def expect_another_answer(bundle: Path) -> None:
    known = json.loads((bundle / "known.json").read_text())
    known["answers"][0]["title_scores"][0][0] += 1.0
    (bundle / "known.json").write_text(json.dumps(known))
    files = json.loads((bundle / "manifest.json").read_text())["files"]
    content = (bundle / "known.json").read_bytes()
    files["known.json"] = {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
    change_manifest(bundle, files=files)


Damage = Callable[[Path], None]
DAMAGES: list[tuple[Damage, str]] = [
    (flip_a_byte, r"vectors\.safetensors is corrupt"),
    (cut_short, r"members\.safetensors has \d+ bytes, the manifest says \d+"),
    (of_another_product, r"manifest\.json is not the manifest of a Frontrow bundle"),
]
MORE: list[tuple[Damage, str]] = [
    (lambda bundle: (bundle / "rows.json").unlink(), r"rows\.json is missing"),
    (lambda bundle: (bundle / "manifest.json").write_text('{"for'), r"manifest\.json cannot be read as JSON"),
    (lambda bundle: (bundle / "manifest.json").write_text("[]"), r"manifest\.json is not the manifest"),
    (lambda bundle: (bundle / "manifest.json").unlink(), r"it has no manifest\.json"),
    (lambda bundle: change_manifest(bundle, format_version=99), r"manifest\.json has format version 99"),
    (lambda bundle: change_manifest(bundle, version=...), r"manifest\.json: version is None"),
    (lambda bundle: change_manifest(bundle, version="one"), r"manifest\.json: version is 'one'"),
    (lambda bundle: change_manifest(bundle, version=0), r"manifest\.json: version is 0"),
    (lambda bundle: change_manifest(bundle, files=...), r"manifest\.json lists no files"),
    (lambda bundle: change_manifest(bundle, files={}), r"manifest\.json does not list"),
    (edit_the_manifest, r"manifest\.json is corrupt"),
    (shutil.rmtree, "does not exist"),
]


@pytest.fixture
def copy(tiny_bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))


@pytest.mark.parametrize(("damage", "says"), DAMAGES + MORE, ids=[says for _, says in DAMAGES + MORE])
def test_a_bundle_that_is_not_whole_is_refused_before_anything_starts(
    copy: Path, tmp_path: Path, damage: Damage, says: str
) -> None:
    damage(copy)
    log = tmp_path / "server.log"
    with pytest.raises(BundleError, match=says), serve_bundle(copy, log=log, **free_ports()):
        pass
    assert not log.exists()


def refused(bundle: Path, folder: Path, ports: dict[str, int]) -> str:
    """The one line with which `frontrow serve` ends."""
    done = subprocess.run(
        [str(FRONTROW), "serve", "--bundle", str(bundle), *options(ports)],
        cwd=folder, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 1
    assert "Traceback" not in done.stdout + done.stderr
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    assert len(lines) == 1, lines
    return lines[0]


@pytest.mark.parametrize(("damage", "says"), DAMAGES, ids=[says for _, says in DAMAGES])
def test_the_command_ends_with_one_line_that_names_the_file(
    copy: Path, tmp_path: Path, damage: Damage, says: str
) -> None:
    damage(copy)
    line = refused(copy, tmp_path, free_ports())
    assert line.startswith("frontrow: ")
    assert re.search(says, line)
    assert str(copy) in line


def test_a_bundle_that_answers_otherwise_than_it_says_does_not_become_ready(copy: Path, tmp_path: Path) -> None:
    """Whole, with the right hashes; but the model in the server gives other scores than the exporter saw."""
    expect_another_answer(copy)
    with pytest.raises(ServerDied) as died, serve_bundle(copy, log=tmp_path / "server.log", **free_ports()):
        pass
    assert "a known request is answered differently: member 1000: title_scores is off by 1" in str(died.value)
    assert str(copy) in str(died.value)


# --- Starting, stopping, dying ---


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_a_signal_ends_the_command_and_leaves_nothing(tiny_bundle: Path, tmp_path: Path, number: int) -> None:
    ports = free_ports()
    process = start(tiny_bundle, tmp_path, ports)
    line = wait_ready(process, tmp_path)
    assert re.fullmatch(r"ready in [\d.]+ s: .*", line)
    for part in (str(tiny_bundle), *map(str, ports.values()), "server.log"):
        assert part in line
    with HomepageClient(f"127.0.0.1:{ports['grpc_port']}", timeout_s=10) as client:
        assert client.homepage(1001).rows
    if number == signal.SIGINT:  # a second server cannot have the ports
        assert f"port {ports['grpc_port']} on 127.0.0.1 is in use: choose another with --grpc-port" in refused(
            tiny_bundle, tmp_path, ports
        )
    assert left_behind(process, tmp_path), "else the next line shows nothing"
    process.send_signal(number)
    assert process.wait(30) == 0
    assert eventually(lambda: not left_behind(process, tmp_path)), left_behind(process, tmp_path)
    assert "stopped" in (tmp_path / "out").read_text()
    assert (tmp_path / "err").read_text() == ""


def test_on_a_terminal_the_spinner_ends_before_the_ready_line(tiny_bundle: Path, tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    command = [str(FRONTROW), "serve", "--bundle", str(tiny_bundle), *options(free_ports()), "--log", "server.log"]
    process = subprocess.Popen(command, cwd=tmp_path, stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    shown = ""
    try:
        while "--member 42" not in shown:
            assert select.select([ours], [], [], 90)[0], shown
            shown += os.read(ours, 65536).decode()
        # The line begins after the spinner's was erased and its cursor shown again; then nothing turns any more.
        assert re.search(r"starting Triton Server", shown)
        assert re.search(r"\x1b\[\?25h(\r|\x1b\[\d*[AK])*ready in [\d.]+ s: bundle ", shown), shown
        assert "Ctrl-C stops it" in shown
        assert not select.select([ours], [], [], 1.0)[0] or not os.read(ours, 65536).strip()
    finally:
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0
        os.close(ours)


def test_a_signal_while_it_starts_leaves_nothing_either(tiny_bundle: Path, tmp_path: Path) -> None:
    process = start(tiny_bundle, tmp_path, free_ports())
    assert eventually(lambda: bool(left_behind(process, tmp_path)), 60)
    process.send_signal(signal.SIGTERM)
    assert process.wait(40) == 0
    assert eventually(lambda: not left_behind(process, tmp_path)), left_behind(process, tmp_path)
    assert "ready" not in (tmp_path / "out").read_text()


def test_a_server_that_is_killed_is_told_in_clear_words_on_both_sides(tiny_bundle: Path, tmp_path: Path) -> None:
    ports = free_ports()
    process = start(tiny_bundle, tmp_path, ports)
    wait_ready(process, tmp_path)
    url = f"127.0.0.1:{ports['grpc_port']}"
    with HomepageClient(url, timeout_s=10) as client:
        assert client.homepage(1001).rows
        os.kill(server_pid(process.pid), signal.SIGKILL)
        assert process.wait(30) == 1
        with pytest.raises(ServerUnavailable, match=f"no server at {url}; start one with `frontrow serve`"):
            client.homepage(1001)
    err = (tmp_path / "err").read_text()
    assert err.startswith(f"frontrow: Triton Server ended by signal 9; its log is {tmp_path / 'server.log'}")
    assert "Traceback" not in err
    assert eventually(lambda: not left_behind(process, tmp_path)), left_behind(process, tmp_path)


def test_a_model_that_is_killed_ends_the_command_whatever_proxy_is_set(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Triton Server stays ready for ever: a supervisor can only start anew what ends."""
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")  # nobody there; neither launcher nor client may ask it
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    ports = free_ports()
    process = start(tiny_bundle, tmp_path, ports)
    wait_ready(process, tmp_path)
    with HomepageClient(f"127.0.0.1:{ports['grpc_port']}", timeout_s=10) as client:
        assert client.homepage(1001).rows
    stub, *_ = (s for s in processes(process.pid) if "stub" in s and "/homepage/" in s)  # of one or several instances
    os.kill(int(stub.split()[0]), signal.SIGKILL)
    assert process.wait(30) == 1
    err = (tmp_path / "err").read_text()
    assert err.startswith("frontrow: a Python process of 'homepage' has ended")
    assert "Traceback" not in err
    assert eventually(lambda: not left_behind(process, tmp_path)), left_behind(process, tmp_path)


def test_a_command_that_is_killed_leaves_nothing(tiny_bundle: Path, tmp_path: Path) -> None:
    process = start(tiny_bundle, tmp_path, free_ports())
    wait_ready(process, tmp_path)
    assert list((tmp_path / "tmp").glob("frontrow-repository-*"))
    process.kill()
    process.wait()
    assert eventually(lambda: not left_behind(process, tmp_path), 30), left_behind(process, tmp_path)


def bundles_in_metrics(port: int) -> set[str]:
    text = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics").read().decode()
    return set(re.findall(r'bundle_timestamp_seconds\{.*version="(\d+)"', text))


def test_a_signal_changes_the_bundle_and_one_that_is_not_whole_is_not_served(tiny_bundle: Path, tmp_path: Path) -> None:
    link, whole, broken, wrong, same = (tmp_path / name for name in ("bundle", "2", "3", "4", "same"))
    for copy, version in ((whole, 2), (broken, 3), (wrong, 4), (same, 2)):
        shutil.copytree(tiny_bundle, copy)
        change_manifest(copy, version=version)
    flip_a_byte(broken)
    expect_another_answer(wrong)
    link.symlink_to(tiny_bundle)
    ports = free_ports()
    process = start(link, tmp_path, ports)
    wait_ready(process, tmp_path)

    def told(target: Path, words: str) -> bool:
        link.unlink()
        link.symlink_to(target)
        process.send_signal(signal.SIGUSR1)
        return eventually(lambda: words in (tmp_path / "out").read_text() + (tmp_path / "err").read_text(), 60)

    with HomepageClient(f"127.0.0.1:{ports['grpc_port']}", timeout_s=10) as client:
        before = client.homepage(1001)
        assert told(tiny_bundle, f"still {tiny_bundle}: there is no newer bundle")
        assert told(broken, f"still {tiny_bundle}: {broken / 'vectors.safetensors'} is corrupt")
        assert client.homepage(1001).bundle_version == before.bundle_version != 2
        assert told(whole, f"changed to {whole}")
        after = client.homepage(1001)
        assert told(same, f"still {whole}: {same} is version 2, as is the bundle that is served: number it anew")
        assert eventually(lambda: bundles_in_metrics(ports["metrics_port"]) == {"2"}), "that of the old one goes"
        assert told(wrong, f"still {whole}: {wrong} is not served")
    assert after.bundle_version == 2
    assert after.rows == before.rows
    with HomepageClient(f"127.0.0.1:{ports['grpc_port']}", timeout_s=10) as client:  # who has no names yet
        assert client.homepage(1001).rows == after.rows, "the catalogue has gone back, too"
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 0
    assert eventually(lambda: not left_behind(process, tmp_path)), left_behind(process, tmp_path)


def test_a_known_request_that_is_refused_is_told_in_clear_words(tmp_path: Path) -> None:
    """Nothing serves here, and a client's own error is no message for people."""
    server = TritonServer(
        repository=tmp_path, load=[], log=tmp_path / "server.log", control_key="k", grpc_port=free_ports()["grpc_port"]
    )
    known = {"context": {"timestamp": 5}, "rows": 1, "titles": 1, "answers": [{"member_id": 1}]}
    with pytest.raises(WrongAnswer, match=r"127\.0\.0\.1:\d+ refuses a known request: .*; its log is .*server\.log"):
        prove(server, known)


def test_a_known_request_that_a_busy_server_refuses_is_asked_again() -> None:
    refusals = [InferenceServerException(f"{QUEUE_FULL}: 16 pages come first", status="StatusCode.UNAVAILABLE")] * 2
    scores = {"row_scores": np.zeros((1, 1)), "title_scores": np.zeros((1, 1, 1))}

    def infer(*_: Any, **__: Any) -> Any:
        if refusals:
            raise refusals.pop()
        return SimpleNamespace(as_numpy=scores.get)

    server: Any = SimpleNamespace(client=lambda: nullcontext(SimpleNamespace(infer=infer)))
    answer = {"member_id": 1, "row_scores": [0.0], "title_scores": [[0.0]]}
    prove(server, {"context": {"timestamp": 5}, "rows": 1, "titles": 1, "answers": [answer]})
    assert refusals == []


def processes(launcher: int) -> list[str]:
    """'pid name command' of the processes of a launcher's server."""
    listing = subprocess.run(["ps", "-wweo", "pid=,comm=,args="], capture_output=True, text=True, check=True).stdout
    return [line for line in listing.splitlines() if f"frontrow-{launcher}-" in line]


def server_pid(launcher: int) -> int:
    (line,) = [s for s in processes(launcher) if s.split()[1] == "tritonserver"]
    return int(line.split()[0])
