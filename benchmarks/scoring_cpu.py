"""How fast is candidate scoring on this host's processors, against torch's two orders and FAISS?

    python -m frontrow.benchmarks.scoring_cpu    → results/scoring-cpu.json

64 members × 1000 candidates × 128 columns, the best 100, in a small and a large catalogue. All in one process, in turn.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import Any

import faiss
import numpy as np
import torch
from torch import Tensor

from ..kernels.candidate_scoring import candidate_scoring
from .command import command
from .provenance import provenance, write_result

MEMBERS, CANDIDATES, WIDTH, KEPT, ROUNDS = 64, 1000, 128, 100, 300


def ways(titles: Tensor) -> dict[str, Callable[[Tensor, Tensor], Any]]:
    """Each scores all candidates and returns the ids and scores of the best."""
    scores = np.empty((MEMBERS, CANDIDATES), np.float32)

    def best(scores: Tensor, candidates: Tensor) -> tuple[Tensor, Tensor]:
        values, places = scores.topk(KEPT)
        return candidates.gather(1, places), values

    def with_faiss(members: Tensor, candidates: Tensor) -> Any:
        pointers = [faiss.swig_ptr(t.numpy()) for t in (members, titles, candidates)]
        faiss.fvec_inner_products_by_idx(  # type: ignore[attr-defined]
            faiss.swig_ptr(scores), *pointers, WIDTH, MEMBERS, CANDIDATES
        )
        return best(torch.from_numpy(scores), candidates)

    return {
        "frontrow": lambda m, c: candidate_scoring(m, titles, c, KEPT),
        "torch, dense then gather": lambda m, c: best((m @ titles.T).gather(1, c), c),
        "torch, gather then product": lambda m, c: best(torch.bmm(titles[c], m[:, :, None]).squeeze(2), c),
        "faiss": with_faiss,
    }


@torch.inference_mode()
def measure(count: int) -> dict[str, float]:
    """Milliseconds, the median of ROUNDS in which every way had its turn with the same inputs."""
    titles = torch.randn(count, WIDTH)
    # Of several, or the processor learns the branches that one input takes.
    inputs = [
        (torch.randn(MEMBERS, WIDTH), torch.stack([torch.randperm(count)[:CANDIDATES] for _ in range(MEMBERS)]))
        for _ in range(20)
    ]
    calls = ways(titles)
    if count > 100_000:
        del calls["torch, dense then gather"]  # seconds
    times: dict[str, list[float]] = {name: [] for name in calls}
    for round_ in range(ROUNDS + 3):
        members, candidates = inputs[round_ % len(inputs)]
        # In another order each time: whoever comes next finds warm caches, and idle threads of the other runtime.
        for name, call in random.sample(list(calls.items()), len(calls)):
            started = time.perf_counter()
            call(members, candidates)
            if round_ >= 3:
                times[name].append(time.perf_counter() - started)
    return {name: round(float(np.median(of)) * 1e3, 3) for name, of in times.items()}


def main() -> None:
    content = {
        "what": f"milliseconds for {MEMBERS} members x {CANDIDATES} candidates x {WIDTH} columns, best {KEPT}; median",
        "milliseconds": {f"N={count}": measure(count) for count in (1682, 1_000_000)},
        **provenance("python -m frontrow.benchmarks.scoring_cpu"),
    }
    print(content["milliseconds"])
    print(write_result("scoring-cpu", content))


if __name__ == "__main__":
    with command("scoring_cpu", __doc__) as parser:
        parser.parse_args()
        main()
