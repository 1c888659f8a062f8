"""The kernel benchmark, tiny and without a GPU: every case is right, a wrong op is not timed, results are written."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from frontrow.benchmarks import kernel_cases, kernel_cases_scoring, kernels
from frontrow.benchmarks.kernel_cases import Case, embedding_cases, search_cases
from frontrow.benchmarks.kernel_cases_scoring import scoring_cases
from frontrow.benchmarks.timing import Call, Ceilings, Times, host

CARD = Ceilings(bytes_per_s=1e12, flops_per_s=1e14)
ABOUT = dict.fromkeys(("device", "driver", "torch", "triton", "commit", "date", "copy_TB_s", "matrix_TFLOP_s"), "x")


def twice(calls: list[Call]) -> Times:
    return host(calls, often=2)


CLOCKS: dict[str, Callable[..., Times]] = {"cold": twice}


@pytest.fixture
def cases(monkeypatch: pytest.MonkeyPatch) -> Iterator[Case]:
    monkeypatch.setattr(kernel_cases, "compiled", lambda function: function)

    def tiny() -> Iterator[Case]:
        yield from embedding_cases(50, 40, 64, "cpu", torch.float32)
        yield from scoring_cases(500, 16, 200, (1, 3), "cpu")
        yield from search_cases(700, 16, 10, (1, 5), "cpu")

    return tiny()


def test_every_case_is_checked_and_timed_and_lands_in_table_and_picture(cases: Iterator[Case], tmp_path: Path) -> None:
    rows = [row for case in cases for row in kernels.measure(case, CARD, CLOCKS)]
    assert not [row["note"] for row in rows if "note" in row]
    assert {row["op"] for row in rows} == {
        "event_embedding", "event_embedding backward", "candidate_scoring", "catalogue_search",
    }  # fmt: skip
    assert all(float(row["median_us"]) > 0 for row in rows)
    kept = kernels.write_rows(tmp_path / "new" / "rows.csv", rows, ABOUT)
    with (tmp_path / "new" / "rows.csv").open(encoding="utf-8") as file:
        read = list(csv.DictReader(file))
    assert [row["median_us"] for row in read] == [row["median_us"] for row in rows]
    text = kernels.table(kept, ABOUT)
    assert "B=3 K=200 D=16 N=500 k=100 | bfloat16" in text
    assert [path.exists() for path in kernels.draw(kept, CARD, tmp_path)] == [True] * 4
    page = tmp_path / "README.md"
    page.write_text(f"a\n{kernels.BEGIN}\nold\n{kernels.END}\nb\n", "utf-8")
    kernels.write_table(text, page)
    assert page.read_text("utf-8") == f"a\n{kernels.BEGIN}\n{text}\n{kernels.END}\nb\n"


def test_an_op_that_is_wrong_is_not_timed(cases: Iterator[Case], monkeypatch: pytest.MonkeyPatch) -> None:
    right = kernel_cases_scoring.candidate_scoring

    def off_by_one(*arguments: Any, **more: Any) -> Any:
        indices, scores = right(*arguments, **more)
        return indices.roll(1, 1), scores

    monkeypatch.setattr(kernel_cases_scoring, "candidate_scoring", off_by_one)
    case = next(case for case in cases if case.op == "candidate_scoring")
    rows = list(kernels.measure(case, CARD, CLOCKS))
    assert len(rows) == 1
    assert rows[0]["note"].startswith("WRONG")
    assert "| wrong |" in kernels.table(rows, ABOUT)


def test_a_peer_that_fails_says_so_and_the_rest_is_timed(cases: Iterator[Case]) -> None:
    def fail() -> list[Call]:
        raise RuntimeError("no room\nfor details")

    case = next(case for case in cases if case.op == "catalogue_search")
    case.peers |= {"unmade": fail, "broken": lambda: [fail]}
    rows = list(kernels.measure(case, CARD, CLOCKS))
    for name in ("unmade", "broken"):
        assert [row["note"] for row in rows if row["implementation"] == name] == ["RuntimeError: no room"]
    assert sum("median_us" in row for row in rows) == 2 * 3


def test_bytes_and_operations_are_counted(cases: Iterator[Case]) -> None:
    every = {f"{case.shape} {case.dtype} {case.ids}": case for case in cases}
    scoring = every["B=1 K=200 D=16 N=500 k=100 bfloat16 uniform"]
    assert (scoring.logical, scoring.flops) == (1 * (200 * (16 * 2 + 8) + 16 * 2 + 12 * 100), 2 * 200 * 16)
    zipf, rows, fp8, exclude = (
        every[name]
        for name in (
            "B=3 K=200 D=16 N=500 k=100 bfloat16 zipf",
            "B=3 rows=40 K<=20 D=16 N=500 k=20 bfloat16 zipf",
            "B=3 K=200 D=16 N=500 k=100 float8_e4m3fn uniform",
            "B=3 K=200 D=16 N=500 k=100 bias exclude bfloat16 uniform",
        )
    )
    assert 0.8 * scoring.logical < scoring.moved < scoring.logical, "few titles are listed twice"
    assert zipf.moved < 0.6 * zipf.logical, "many are"
    assert rows.moved < 0.7 * rows.logical
    assert fp8.logical == 3 * (200 * (16 + 4 + 8) + 16 * 2 + 12 * 100)
    assert exclude.logical < 3 * (200 * (16 * 2 + 4 + 8 + 1) + 16 * 2 + 12 * 100), "excluded titles are not read"
    assert all(case.moved <= case.logical for case in every.values())
    assert CARD.floor_us(10**6, 10**6) == pytest.approx(1.0)
    assert CARD.floor_us(1, 10**9) == pytest.approx(10.0)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_nothing_is_measured_or_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert kernels.main(["--out", str(tmp_path / "out")]) == 2
    assert "no GPU" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_second_run_keeps_what_it_did_not_measure_again(cases: Iterator[Case], tmp_path: Path) -> None:
    searched = [case for case in cases if case.op == "catalogue_search"]
    file = tmp_path / "rows.csv"
    both = kernels.write_rows(file, [row for case in searched for row in kernels.measure(case, CARD, CLOCKS)], ABOUT)
    again = kernels.write_rows(file, kernels.measure(searched[0], CARD, CLOCKS), ABOUT)
    assert len(again) == len(both)
    assert {kernels.case_of(row) for row in again} == {kernels.case_of(row) for row in both}
    assert kernels.table(again, ABOUT).count("| catalogue_search |") == 2
