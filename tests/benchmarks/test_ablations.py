"""Every variant trains and ranks; differences are paired; the result says no more than its runs."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from frontrow.benchmarks import ablations
from frontrow.benchmarks.ablation_variants import (
    VARIANTS,
    Averaged,
    ManyCorrected,
    Sampled,
    Variant,
    fixed_cuts,
    newest_only,
    of_kind,
)
from frontrow.benchmarks.paired import difference
from frontrow.foundation.heads import Heads
from frontrow.foundation.model import FoundationModel
from frontrow.foundation.schema import default_schema
from frontrow.training.batches import windows
from frontrow.training.data import Dataset, load_dataset
from frontrow.training.evaluate import ranks_of_targets
from frontrow.training.train import TrainConfig


def built(variant: Variant, folder: Path, config: TrainConfig) -> tuple[FoundationModel, Dataset, TrainConfig]:
    data = load_dataset(folder, variant.schema(default_schema()))
    config = variant.config(config)
    return variant.build(data, config.model), data, config


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda v: v.name)
def test_a_variant_reaches_every_weight_and_ranks_everyone(
    variant: Variant, tiny_folder: Path, tiny_config: TrainConfig
) -> None:
    model, data, config = built(variant, tiny_folder, tiny_config)
    batch = next(iter(variant.batches_of(data, config.model.max_events, config.batch_tokens, 0, 0)))
    total = model.train().heads.total(model(batch.tokens, batch.offsets, batch.targets, batch.times))
    total.backward()
    assert torch.isfinite(total)
    untouched = [name for name, p in model.named_parameters() if p.grad is None]
    assert untouched == []
    ranks = ranks_of_targets(model, data, "validation")
    assert len(ranks) == len(data)
    assert ranks.max() < len(data.titles)


def test_an_average_of_weights_is_evaluated_and_the_weights_are_trained(tiny_data: Dataset) -> None:
    model = of_kind(Averaged)(tiny_data, TrainConfig().model)
    assert isinstance(model, Averaged)
    weight = model.heads.member.weight
    batch = next(iter(VARIANTS[0].batches_of(tiny_data, 16, 200, 0, 0)))
    model(batch.tokens, batch.offsets, batch.targets, batch.times)
    before = weight.detach().clone()
    with torch.no_grad():
        weight += 1.0
    model.eval()
    assert torch.allclose(weight, before + (1 - model.decay))
    model.train()
    assert torch.allclose(weight, before + 1.0)


def test_cuts_that_are_fixed_and_windows_that_are_newest() -> None:
    starts, stops = np.array([0, 30]), np.array([30, 40])
    drawn = [windows(starts, stops, 12, np.random.default_rng(i)).tolist() for i in range(4)]
    fixed = [fixed_cuts(starts, stops, 12, np.random.default_rng(i)).tolist() for i in range(4)]
    assert len({str(d) for d in drawn}) > 1
    assert len({str(f) for f in fixed}) == 1
    assert newest_only(starts, stops, 12, np.random.default_rng(0)).tolist() == [[18, 30], [30, 40]]


def test_sampled_softmax_with_logq_estimates_the_full_one(tiny_data: Dataset) -> None:
    count, width = len(tiny_data.titles), 8
    members, titles = torch.randn(200, width), torch.randn(count, width)
    right = torch.randint(count, (200,))
    arguments = tiny_data.schema, tiny_data.sizes, 8, width
    full = Heads(*arguments).title_loss(members, titles, right)
    found = {kind: kind(*arguments).title_loss(members, titles, right) for kind in (Sampled, ManyCorrected)}
    assert found[ManyCorrected].item() == pytest.approx(full.item(), rel=0.05)
    absent = torch.full_like(right, -2)
    assert Sampled(*arguments).title_loss(members, titles, absent) == 0


def test_a_difference_is_paired_and_knows_both_sources_of_noise() -> None:
    rng = np.random.default_rng(0)
    members = rng.normal(size=400)
    base = rng.normal(size=(5, 400)) + members  # members differ much more than what a variant changes
    same = difference(base + 0.1, base)
    assert same["mean"] == pytest.approx(0.1)
    assert same["to"] - same["from"] == pytest.approx(0, abs=1e-9)
    by_seed = rng.normal(scale=0.5, size=(5, 1))
    lucky = difference(base + 0.1 + by_seed, base)
    half = 2.776 * by_seed.std(ddof=1) / 5**0.5  # Student's t of five
    assert lucky["to"] - lucky["mean"] == pytest.approx(half, rel=0.02), "seeds that differ widen the interval"
    alone = difference((base + members)[:1], base[:1])
    assert alone["to"] - alone["mean"] == pytest.approx(1.96 * members.std(ddof=1) / 20)


def test_the_result_and_its_text_say_no_more_than_the_runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(ablations, "RUNS", tmp_path)

    def write(name: str, seed: int, ranks: list[int]) -> None:
        file = ablations.run_file(name, seed, 10)
        file.parent.mkdir(parents=True, exist_ok=True)
        about = {"epoch": 9, "seconds": 1.0, "parameters": 5, "device": "d", "commit": "c", "date": "t"}
        file.write_text(json.dumps({"seed": seed, "ranks": ranks, "ranks_without_request": ranks, **about}))

    for seed in range(5):
        write("base", seed, [0, 20, 20, 30])
        write("hstu", seed, [0, 0, 0, 0])
        write("untied", seed, [20, 20, 20, 30])
    write("average", 7, [0, 0, 0, 0])  # no base of that seed
    write("d-256", 3, [0, 0, 0, 0])
    found = {"dataset": "set", "protocol": "how", **ablations.summary(10)}
    by_name = {v["name"]: v for v in found["variants"]}
    assert list(by_name) == ["base", "average", "hstu", "untied", "d-256"]
    assert "difference" not in by_name["average"]
    assert by_name["hstu"]["difference"]["ndcg@10"]["mean"] == pytest.approx(0.75)
    assert by_name["d-256"]["difference"]["seeds"] == [3]
    verdicts = {n: ablations.verdict(by_name[n], 5) for n in ("hstu", "untied", "d-256")}
    assert verdicts == {"hstu": "better", "untied": "no clear difference", "d-256": "open: 1 of 5 seeds"}
    text = ablations.markdown(found)
    assert "HSTU-like attention | 5 | 1.0000 | +0.7500" in text
    assert "average of weights" not in text
    ablations.draw(found, tmp_path / "bars.png")
    assert (tmp_path / "bars.png").stat().st_size > 10_000


def test_runs_that_are_there_are_not_made_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tiny_folder: Path
) -> None:
    written: list[dict] = []

    def kept(name: str, content: dict, trial: bool) -> Path:
        assert trial, "one epoch is not what is published"
        written.append(content)
        return tmp_path / f"{name}.json"

    monkeypatch.setattr(ablations, "RUNS", tmp_path)
    monkeypatch.setattr(ablations, "dataset", lambda schema: load_dataset(tiny_folder, schema))
    monkeypatch.setattr(ablations, "write_result", kept)
    ablations.main(["no-gap"], [0], epochs=1, workers=1)
    assert written == [], "there is no base to compare with"
    ablations.main(["base", "no-gap"], [0], epochs=1, workers=1)
    base, other = written[-1]["variants"]
    assert (base["name"], other["name"]) == ("base", "no-gap")
    assert [s["seed"] for s in other["seeds"]] == other["difference"]["seeds"] == [0]
    assert other["difference"]["mrr"]["mean"] == pytest.approx(other["mean"]["mrr"] - base["mean"]["mrr"])
    monkeypatch.setattr(ablations, "run", lambda *task: pytest.fail(f"{task} was there"))
    ablations.main(["base", "no-gap"], [0], epochs=1, workers=1)
    assert written[-1] == written[-2]
