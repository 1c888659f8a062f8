"""Hours in minutes: most of what a server can answer, bundles changing under way, and not one request fails.

FRONTROW_SOAK_SECONDS=20 for a try; by default ten minutes."""

from __future__ import annotations

import json
import os
import shutil
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from frontrow.clients import HomepageClient
from frontrow.foundation.bundle import load_bundle, manifest_sha256
from frontrow.serving.serve import change_bundle, serve_bundle
from frontrow.serving.triton_server import ServerNotFound, find_tritonserver
from server_process import free_ports

pytest.importorskip("tritonclient.grpc", reason="tritonclient[grpc] is not installed")
try:
    find_tritonserver()
except ServerNotFound as error:
    pytest.skip(str(error), allow_module_level=True)

SECONDS = float(os.environ.get("FRONTROW_SOAK_SECONDS", "600"))
SWAP_EVERY = min(60.0, SECONDS / 3)
SHARE = 0.8  # of capacity
CAPACITY_SECONDS = 5.0
QUEUE = 200  # while a bundle is loaded more may wait than serve takes unasked


def numbered(bundle: Path, version: int, folder: Path) -> Path:
    """A copy of a bundle with another number."""
    copy = Path(shutil.copytree(bundle, folder / str(version)))
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["version"] = version
    manifest["manifest_sha256"] = manifest_sha256(manifest)
    (copy / "manifest.json").write_text(json.dumps(manifest))
    return copy


@pytest.mark.long
@pytest.mark.timeout(SECONDS + 300)
def test_no_request_fails_while_bundles_change(tiny_bundle: Path, tmp_path: Path) -> None:
    """FRONTROW_SOAK_BUNDLE names a bundle in place of the tiny one."""
    from frontrow.benchmarks.open_loop import at_rate, in_flight, serialized
    from frontrow.benchmarks.serve_load import draw_requests

    bundle = Path(os.environ.get("FRONTROW_SOAK_BUNDLE", tiny_bundle))
    bundles = [numbered(bundle, version, tmp_path) for version in (1, 2)]
    requests = [serialized(r) for r in draw_requests(load_bundle(bundle), "mixed")]
    member = int(load_bundle(bundle).member_ids[0])
    with serve_bundle(bundles[0], queue=QUEUE, log=tmp_path / "server.log", **free_ports()) as server:
        in_flight(server.address, requests, 8, 2.0)
        busy = in_flight(server.address, requests, 8, CAPACITY_SECONDS)
        rate = SHARE * len(busy.sent) / float(np.ptp(busy.sent))
        stop, swaps, versions, errors = threading.Event(), [], [], []

        def swap() -> None:
            number = 0
            while not stop.wait(SWAP_EVERY / 2 if not number else SWAP_EVERY):
                number += 1
                began = time.monotonic()
                try:
                    change_bundle(server, bundles[number % 2], queue=QUEUE)
                except Exception as error:
                    errors.append(error)
                swaps.append(time.monotonic() - began)

        def ask() -> None:
            with HomepageClient(server.address, timeout_s=10) as client:
                client.catalogue()
                while not stop.wait(0.5):
                    try:
                        page = client.homepage(member)
                        versions.append(page.bundle_version)
                        assert page.rows
                        assert page.rows[0].titles[0].name
                    except Exception as error:
                        errors.append(error)

        threads = [threading.Thread(target=swap), threading.Thread(target=ask)]
        for thread in threads:
            thread.start()
        try:
            found = at_rate(server.address, requests, rate, SECONDS)
        finally:
            stop.set()
            for thread in threads:
                thread.join()
    p50, p99 = (np.percentile(found.latency, q) * 1000 for q in (50, 99))
    print(
        f"{len(found.sent)} requests, {rate:.0f} a second, p50 {p50:.0f} ms, p99 {p99:.0f} ms; {len(swaps)} changes of "
        f"bundle, {max(swaps):.1f} s at most; {found.refused.sum()} refused, {len(found.failed)} failed"
    )
    assert errors == []
    assert found.failed == []
    assert found.refused.sum() == 0
    assert {1, 2} <= set(versions)
