"""bfloat16 where a processor multiplies it natively (AVX512-BF16, AMX) and members' vectors stay what they are."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from .homepage import HomepageEngine
from .requests import PageRequest, Prepared

TOLERANCE = 1e-2  # of a member vector: the length of the difference, as a share of its own


def multiplies_bfloat16(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether this host's processor has instructions for it; others only imitate them, slowly."""
    try:
        lines = cpuinfo.read_text("utf-8").splitlines()
    except OSError:  # not Linux
        return False
    flags = next((line.split() for line in lines if line.startswith(("flags", "Features"))), [])
    return bool({"avx512_bf16", "amx_bf16", "bf16"} & set(flags))


def use_bfloat16(engine: HomepageEngine) -> bool:
    """Let the transformer multiply in bfloat16 if this CPU does so natively, and no known member's vector comes out
    differently by more than TOLERANCE. Returns whether it does."""
    known = engine.store.bundle.known
    context = json.dumps(known["context"]).encode()
    asked = [PageRequest(answer["member_id"], context=context) for answer in known["answers"]]
    prepared = [p for p in engine.prepare(asked, float(known["context"]["timestamp"])) if isinstance(p, Prepared)]
    if engine.store.device.type != "cpu" or not prepared or not multiplies_bfloat16():
        return False
    exact, _ = engine.encode(prepared)
    engine.bfloat16 = True
    vectors, _ = engine.encode(prepared)
    off = torch.linalg.vector_norm(vectors - exact, dim=1) / torch.linalg.vector_norm(exact, dim=1).clamp(min=1e-12)
    engine.bfloat16 = bool(off.max() <= TOLERANCE)
    return engine.bfloat16
