"""Every variant trains and ranks; differences are paired; the result says no more than its runs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from frontrow.benchmarks.ablation_variants import VARIANTS, Variant
from frontrow.foundation.model import FoundationModel
from frontrow.foundation.schema import default_schema
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
    total = model.train().heads.total(model(batch.tokens, batch.offsets, batch.targets))
    total.backward()
    assert torch.isfinite(total)
    untouched = [name for name, p in model.named_parameters() if p.grad is None]
    assert untouched == []
    ranks = ranks_of_targets(model, data, "validation")
    assert len(ranks) == len(data)
    assert ranks.max() < len(data.titles)
