"""Load tests of the server: what perf_analyzer is given and reports, what becomes of it, and which server is slower."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from frontrow.benchmarks.perf_analyzer import PerfAnalyzerMissing, install
from frontrow.benchmarks.serve import overheads, plot, summary, write_csv
from frontrow.benchmarks.serve_compare import judge, side
from frontrow.benchmarks.serve_load import MODES, draw_requests, input_data
from frontrow.benchmarks.serve_run import Load, LoadError, measured, parse_report, python_of, serving
from frontrow.foundation.bundle import load_bundle
from frontrow.foundation.schema import WIRE
from frontrow.serving.homepage import HomepageEngine, Page
from frontrow.serving.store import Store
from frontrow.serving.triton_server import ServerNotFound, find_tritonserver

# perf_analyzer 2.48 wrote these with --verbose-csv.
REPORT = (
    "Concurrency,Inferences/Second,Client Send,Network+Server Send/Recv,Server Queue,Server Compute Input,"
    "Server Compute Infer,Server Compute Output,Client Recv,p50 latency,p90 latency,p95 latency,p99 latency,"
    "Avg latency,request/response,response wait\n"
    "4,133.757,6,5818,5731,55,17578,375,4,20706,55675,89567,162219,29570,10,29536\n"
)


def test_a_report_is_read_in_milliseconds() -> None:
    assert parse_report(REPORT) == {
        "pages_per_second": 133.76,
        "latency_ms": {"p50": 20.706, "p95": 89.567, "p99": 162.219, "mean": 29.57},
        "split_ms": {
            "client_send": 0.006, "network": 5.818, "queue": 5.731, "input": 0.055, "infer": 17.578, "output": 0.375,
            "client_receive": 0.004,
        },
    }  # fmt: skip
    rate = parse_report(REPORT.replace("Concurrency", "Request Rate"))
    assert rate["pages_per_second"] == 133.76


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (REPORT.replace("p99 latency", "p999 latency"), "lacks .'p99 latency'"),
        (REPORT.splitlines()[0], "reports 0 loads"),
        (REPORT + REPORT.splitlines()[1], "reports 2 loads"),
        ("", "reports 0 loads"),
    ],
)
def test_a_report_of_another_kind_is_refused(text: str, says: str) -> None:
    with pytest.raises(LoadError, match=says):
        parse_report(text)


@pytest.mark.parametrize("mode", MODES)
def test_requests_are_answered_and_carry_every_input(tiny_bundle: Path, mode: Any) -> None:
    store = Store.open(tiny_bundle)
    requests = draw_requests(store.bundle, mode, count=30)
    pages = HomepageEngine(store).pages(requests)
    assert [p for p in pages if not isinstance(p, Page)] == []
    assert {p.info["fallback"] for p in pages if isinstance(p, Page)} == {None}
    data = input_data(requests)["data"]
    assert all(set(entry) == {t.name for t in WIRE["homepage"][0]} for entry in data)
    assert all(v["shape"] == [len(v["content"])] for entry in data for v in entry.values())
    lengths = {entry["events"]["shape"][0] for entry in data}
    if mode == "stored":
        assert lengths == {0}
    elif mode == "events":
        stored = np.diff(store.bundle.histories.offsets)
        assert lengths <= set(stored.tolist())
    else:
        assert 0 in lengths
        assert len(lengths) > 3


def test_who_asks_follows_zipf_and_the_seed(tiny_bundle: Path) -> None:
    bundle = load_bundle(tiny_bundle)
    members = [r.member_id for r in draw_requests(bundle, "stored", count=400)]
    often = np.sort(np.unique(members, return_counts=True)[1])[::-1]
    assert often[0] > 3 * often[len(often) // 2]
    assert members == [r.member_id for r in draw_requests(bundle, "stored", count=400)]
    assert members != [r.member_id for r in draw_requests(bundle, "stored", count=400, seed=1)]


def run_of(number: int, p50: float, load: str = "concurrency", value: float = 1, **more: Any) -> dict[str, Any]:
    figures = {**parse_report(REPORT), "mean_batch": 1.0, "cpu_percent": 90.0, "memory_mb": 400.0}
    figures["latency_ms"] = {**figures["latency_ms"], "p50": p50}
    return {"mode": "stored", "round": number, "load": load, "value": value, **more, **figures}


def test_rounds_become_medians_and_failed_ones_are_counted(tmp_path: Path) -> None:
    failed = {"mode": "stored", "round": 3, "load": "concurrency", "value": 1, "error": "refused"}
    rates = [run_of(i, 9.0, "rate", 10.0 + i, share=0.5) for i in range(3)]
    lines = summary([run_of(0, 10.0), run_of(1, 12.0), run_of(2, 50.0), failed, *rates])
    assert [(s["load"], s["value"], s["errors"], s["p50_ms"]) for s in lines] == [
        ("concurrency", 1, 1, 12.0),
        ("rate", 11.0, 0, 9.0),  # one load, though each round had its own capacity
    ]
    write_csv([*lines, {"mode": "stored", "load": "rate", "value": 5, "errors": 1}], tmp_path / "x.csv")
    assert (tmp_path / "x.csv").read_text().splitlines()[1].startswith("stored,concurrency,1,1,")


def test_what_the_server_adds_is_told_from_the_same_round() -> None:
    engine = [{"mode": "stored", "round": i, "p50": p50} for i, p50 in enumerate((8.0, 20.0, 8.0))]
    served = [run_of(i, p50) for i, p50 in enumerate((9.0, 21.5, 9.2))]
    found = overheads({"in_process_ms": engine, "runs": [*served, run_of(0, 99.0, value=2)]})
    assert found == {"stored": {"in_process": 8.0, "served": 9.2, "added": 1.2}}


def test_the_picture_is_drawn(tmp_path: Path) -> None:
    content = {"summary": summary([run_of(0, 10.0), run_of(0, 12.0, value=2), run_of(0, 9.0, "rate", 50)])}
    content |= {
        "data_set": "x",
        "titles": 9,
        "candidates": 9,
        "instances": 1,
        "rounds": 1,
        "device": "a host",
        "date": "today",
    }
    plot(content, tmp_path / "x.png")
    assert (tmp_path / "x.png").stat().st_size > 10_000


SAME = [0.97, 1.02, 1.0, 0.99, 1.04, 0.96, 1.01, 1.0, 0.98, 1.03]


@pytest.mark.parametrize(
    ("ratios", "worse"),
    [
        (SAME, False),
        ([r * 0.8 for r in SAME], True),
        ([r * 0.95 for r in SAME], False),  # surely slower, but by less than the threshold
        ([r * 1.3 for r in SAME], False),  # faster
        ([0.5, 0.5, 0.6, 0.7, 0.8, 0.85, 1.1, 1.2, 1.3, 1.4], False),  # one cannot tell
        ([*[r * 0.8 for r in SAME[:-1]], 1.5], True),  # one disturbed round of ten hides nothing
    ],
)
def test_the_gate_wants_a_loss_that_is_large_and_sure(ratios: list[float], worse: bool) -> None:
    assert judge(ratios, threshold=0.1).worse is worse


def test_the_interval_of_ten_rounds_leaves_out_one_at_each_end() -> None:
    found = judge([float(i) for i in range(1, 11)], 0.1)
    assert (found.median, found.low, found.high) == (5.5, 2.0, 9.0)  # 97.9 % by the signs of ten rounds
    with pytest.raises(ValueError, match="give 6 or more"):
        judge([1.0] * 5, 0.1)


def test_what_cannot_be_told_is_not_called_good() -> None:
    assert "not worse by more than 10%" in judge(SAME, 0.1).words(0.1)
    assert "too uneven" in judge([0.5, 0.7, 0.9, 1.0, 1.1, 1.2, 1.4], 0.1).words(0.1)
    assert judge([r * 0.8 for r in SAME], 0.1).words(0.1).startswith("0.800 (0.776 to 0.824): worse by more than 10%")


def test_a_side_is_a_bundle_or_a_checkout(tiny_bundle: Path, tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    assert side(tiny_bundle, root) == (tiny_bundle, root)
    assert side(root, tiny_bundle) == (tiny_bundle, None)
    with pytest.raises(ValueError, match="neither a bundle"):
        side(tiny_bundle, tmp_path)


def test_a_checkout_is_served_with_the_packages_of_this_environment(tmp_path: Path) -> None:
    other = tmp_path / "other" / "serving"
    other.mkdir(parents=True)
    (other / "__init__.py").write_text("print('the other one')")
    python = python_of(other.parent, tmp_path / "environment")
    # Isolated, as Triton Server's Python processes are.
    code = "import frontrow.serving, numpy, importlib.util; print(importlib.util.find_spec('frontrow.kernels'))"
    done = subprocess.run([python, "-I", "-c", code], capture_output=True, text=True)
    assert done.stdout == "the other one\nNone\n", done.stderr


def test_a_real_server_under_a_small_load(tiny_bundle: Path, tmp_path: Path) -> None:
    pytest.importorskip("tritonclient.grpc", reason="tritonclient[grpc] is not installed")
    try:
        find_tritonserver()
        install()
    except (ServerNotFound, PerfAnalyzerMissing) as error:
        pytest.skip(str(error))
    requests = draw_requests(load_bundle(tiny_bundle), "mixed", count=20)
    (tmp_path / "good").write_text(json.dumps(input_data(requests)))
    bad = input_data(requests)
    for entry in bad["data"]:
        entry["page"]["content"] = [400, 20]
    (tmp_path / "bad").write_text(json.dumps(bad))
    with serving(tiny_bundle, 1) as server:
        for load in (Load("concurrency", 4), Load("rate", 20)):
            found = measured(server, tmp_path / "good", load, seconds=0.6, pages_per_second=200)  # all were accepted
            assert 0 < found["latency_ms"]["p50"] <= found["latency_ms"]["p95"] <= found["latency_ms"]["p99"]
            assert found["pages_per_second"] > 1
            assert 1 <= found["mean_batch"] <= 4
            assert 0 < found["cpu_ms_per_page"] < 1000
            assert 100 < found["memory_mb"] < 4000
        with pytest.raises(LoadError, match="page asks for 400 rows"):
            measured(server, tmp_path / "bad", Load("concurrency", 1), seconds=0.3, pages_per_second=200)
        launcher, processes = server.pid, server.processes()
        assert len(processes) == 3  # the server, and the Python of homepage and of catalogue
    assert not any(Path(f"/proc/{pid}").exists() for pid in (launcher, *processes))
