"""bfloat16: only where the processor has it, and only if members' vectors stay what they are."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from frontrow.serving import precision
from frontrow.serving.homepage import HomepageEngine, PageRequest
from frontrow.serving.precision import TOLERANCE, multiplies_bfloat16, use_bfloat16
from frontrow.serving.requests import Prepared
from frontrow.serving.store import Store


@pytest.fixture
def engine(tiny_bundle: Path) -> HomepageEngine:
    return HomepageEngine(Store.open(tiny_bundle))


@pytest.fixture
def native(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "multiplies_bfloat16", lambda: True)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("processor : 0\nflags : fpu avx512f avx512_bf16\n", True),
        ("flags\t\t: fpu amx_bf16 amx_tile\n", True),
        ("flags : fpu avx512f\n", False),
        ("", False),
    ],
)
def test_a_processor_says_what_it_has(text: str, expected: bool, tmp_path: Path) -> None:
    (tmp_path / "cpuinfo").write_text(text)
    assert multiplies_bfloat16(tmp_path / "cpuinfo") is expected
    assert not multiplies_bfloat16(tmp_path / "nothing")


def test_vectors_in_bfloat16_are_close_and_not_the_same(engine: HomepageEngine, native: None) -> None:
    members = engine.store.bundle.member_ids[:20].tolist()
    prepared = [p for p in engine.prepare([PageRequest(m) for m in members], 1.72e9) if isinstance(p, Prepared)]
    exact, _ = engine.encode(prepared)
    assert use_bfloat16(engine)
    vectors, states = engine.encode(prepared)
    assert vectors.dtype == states.dtype == torch.float32
    off = (vectors - exact).norm(dim=1) / exact.norm(dim=1)
    assert 0 < float(off.max()) < 2 * TOLERANCE


def test_a_model_that_bfloat16_would_change_stays_in_float32(
    engine: HomepageEngine, native: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precision, "TOLERANCE", 1e-7)
    assert not use_bfloat16(engine)
    assert not engine.bfloat16


def test_other_processors_stay_in_float32(engine: HomepageEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "multiplies_bfloat16", lambda: False)
    assert not use_bfloat16(engine)
    assert not engine.bfloat16
