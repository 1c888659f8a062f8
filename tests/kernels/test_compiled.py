"""Every kernel, compiled for sm_80, sm_90 and sm_100 without a GPU, within the stored budget of registers and shared
memory, without spills, and with the instructions it is meant to use.

After a change that is meant to move the budget delete budget.json, run `python tests/kernels/test_compiled.py` with the
oldest and the newest Triton that is supported (the larger figures stay), and look at the difference.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton", reason="the kernels need Triton")
HERE = Path(__file__).parent
BUDGET = HERE / "budget.json"
OPS = ("top_keys", "candidate_scoring", "catalogue_search", "event_embedding", "event_embedding_backward")
SHARED = {"80": 163 * 1024, "90": 227 * 1024, "100": 227 * 1024}  # bytes that one program may have
SLACK = 1.15  # registers move by some between Triton's versions
POOL = ThreadPoolExecutor(2)
MEANT = ("wgmma", "tcgen05", "mma", "async copies", "16-byte loads")


@cache
def compiler(op: str) -> Future[subprocess.CompletedProcess[str]]:
    run = partial(subprocess.run, capture_output=True, text=True)
    return POOL.submit(run, [sys.executable, HERE / "compiled.py", op])


@pytest.fixture(scope="module", autouse=True)
def _started(request: pytest.FixtureRequest) -> Iterator[None]:
    """Every compiler that the tests of this run wait for, first the one that takes longest."""
    for op in sorted(OPS, key="catalogue_search".__ne__):
        if any(f"[{op}]" in test.name for test in request.session.items):
            compiler(op)
    yield
    POOL.shutdown(wait=False, cancel_futures=True)


@cache
def compiled(op: str) -> dict[str, Any]:
    """{case: {architecture: [kernel, …]}}"""
    result = compiler(op).result()
    assert result.returncode == 0, result.stderr[-3000:]
    return json.loads(result.stdout)["cases"]


def raise_budget(budget: dict[str, Any], op: str) -> None:
    """Makes {op: {case: {architecture: {kernel: {registers, shared, has}}}}} allow what this Triton compiles."""
    for case, of_architecture in compiled(op).items():
        for architecture, kernels in of_architecture.items():
            into = budget.setdefault(op, {}).setdefault(case, {}).setdefault(architecture, {})
            for kernel in kernels:
                has = [name for name in MEANT if kernel.get(name)]
                known = into.setdefault(kernel["kernel"], {"registers": 0, "shared": 0, "has": has})
                for what in ("registers", "shared"):
                    known[what] = max(known[what], kernel[what])
                known["has"] = [name for name in known["has"] if name in has]


@pytest.mark.parametrize("op", OPS)
def test_every_kernel_is_within_its_budget(op: str) -> None:
    budget = json.loads(BUDGET.read_text("utf-8"))[op]
    cases = compiled(op)
    assert set(cases) == set(budget)
    faults = []
    for case, of_architecture in cases.items():
        assert set(of_architecture) == set(SHARED)
        for architecture, kernels in of_architecture.items():
            assert {k["kernel"] for k in kernels} == set(budget[case][architecture])
            for kernel in kernels:
                allowed = budget[case][architecture][kernel["kernel"]]
                where = f"{case}, sm_{architecture}, {kernel}"
                faults += [f"{where}: spills"] * (kernel["stack"] > 0)
                faults += [f"{where}: over the card's shared memory"] * (kernel["shared"] > SHARED[architecture])
                faults += [f"{where}: registers over {allowed}"] * (kernel["registers"] > allowed["registers"] * SLACK)
                faults += [f"{where}: shared over {allowed}"] * (kernel["shared"] > allowed["shared"] * SLACK)
                faults += [f"{where}: no {name}" for name in allowed["has"] if not kernel.get(name)]
                # One such load is a bias of fewer values than the program has threads.
                faults += [f"{where}: 2-byte loads"] * (kernel.get("2-byte loads", 0) > 1)
    assert not faults, "\n".join(faults)


def test_heavy_loads_are_wide_and_products_use_matrix_units() -> None:
    matrix = {"80": "mma", "90": "wgmma", "100": "tcgen05"}
    for case, of_architecture in compiled("catalogue_search").items():
        for architecture, kernels in of_architecture.items():
            for kernel in kernels:
                if kernel["kernel"] in ("_block_maxima", "_score_blocks"):
                    few = "D=1024" in case  # of the widest titles too few lie in a block for the newer instructions
                    assert kernel["mma" if few else matrix[architecture]]
                    assert kernel["16-byte loads"]
                if kernel["kernel"] == "_block_maxima":
                    assert kernel["async copies"], "titles are loaded while others are multiplied"
    for of_architecture in compiled("candidate_scoring").values():
        for kernels in of_architecture.values():
            assert all(kernel["16-byte loads"] for kernel in kernels if kernel["kernel"] == "_score_tile")


@pytest.mark.parametrize("architecture", ["80", "90", "100"])
def test_both_passes_of_a_search_multiply_alike(architecture: str) -> None:
    """Their scores must be the same bits: the same instructions for a tile, of which the loop may hold two."""
    for case, of_architecture in compiled("catalogue_search").items():
        passes = {k["kernel"]: k for k in of_architecture[architecture]}
        for kind in ("wgmma", "tcgen05", "mma"):
            of_loop, of_tile = (passes[name].get(kind, 0) for name in ("_block_maxima", "_score_blocks"))
            assert of_loop in (of_tile, 2 * of_tile), case


if __name__ == "__main__":
    stored = json.loads(BUDGET.read_text("utf-8")) if BUDGET.exists() else {}
    for op in OPS:
        compiler(op)
    for op in OPS:
        raise_budget(stored, op)
    BUDGET.write_text(json.dumps(stored, indent=1) + "\n", "utf-8")
