"""The table beside other libraries: what a kept run must agree with, and that the text is the result's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from frontrow.benchmarks import quality_peers
from frontrow.benchmarks.quality_peers import OURS, Trained, markdown


def test_a_kept_run_is_used_only_if_the_same_made_it(tmp_path: Path) -> None:
    made = []

    def once() -> Trained:
        made.append(1)
        return {"frontrow": (np.array([0, 3]), {"epoch": len(made)})}

    file = tmp_path / "runs" / "frontrow-0.json"
    for made_by, times in (({"recipe": "a"}, 1), ({"recipe": "a"}, 1), ({"recipe": "b"}, 2)):
        source = {"commit": f"after {len(made)}", "device": "x", "date": "y", "versions": {}}
        ranks, how = quality_peers._kept(file, made_by, source, once)["frontrow"]
        made_then = {"commit": f"after {times - 1}", "device": "x", "date": "y"}
        assert (ranks.tolist(), how, len(made)) == ([0, 3], {"epoch": times} | made_then, times)


def test_the_text_says_how_far_each_is_behind_both_of_ours() -> None:
    goal = f"seconds_to_validation_hr_{quality_peers.GOAL}"
    runs = [{"model": name, "seed": 0, "hr@10": hit, "ndcg@10": hit / 2, "seconds": 9, goal: 5.0}
            for name, hit in zip((*OURS, "popularity"), (0.3, 0.25, 0.1), strict=True)]  # fmt: skip
    gap = {"mean": 0.1, "from": 0.05, "to": 0.15}
    paired = {f"{ours} - popularity": gap for ours in OURS}
    text = markdown({"runs": runs, "paired": paired, "device": "x", "versions": {"rectools": "1"}})
    assert "| popularity | +0.1000 (+0.0500 to +0.1500) | +0.1000 (+0.0500 to +0.1500) |" in text
    assert "| popularity | 1 | 0.1000 | 0.0500 | 9 | 5 s |" in text
