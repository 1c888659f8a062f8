"""Operations and rates of training."""

from __future__ import annotations

import pytest
import torch
from frontrow.foundation.model import FoundationModel, ModelConfig
from frontrow.foundation.schema import Field, Schema
from frontrow.training.speed import matmul_rate, training_flops
from torch.utils.flop_counter import FlopCounterMode


def test_operations_are_those_that_torch_counts() -> None:
    schema = Schema(
        fields=(Field("entity_id", "what.entity_id", "id", "action", 32, loss_weight=1.0),), title_fields=()
    )
    metadata = torch.zeros(2 + 50, 0, dtype=torch.int32)
    model = FoundationModel(schema, ModelConfig(d_model=64, dropout=0.0), {"entity_id": 52}, metadata)
    offsets = torch.tensor([0, 40, 70])
    ids = torch.randint(2, 52, (70, 1), dtype=torch.int32)
    with FlopCounterMode(display=False) as counted:
        model.heads.total(model.losses(ids, offsets, ids, torch.zeros(70, dtype=torch.int64))).backward()
    embedding = 6 * 70 * 32 * 64  # not seen: inside an op of its own, as is the CPU's attention
    attention = 6 * 2 * 64 * (40 * 41 + 30 * 31)
    assert training_flops(model, offsets) == pytest.approx(counted.get_total_flops() + embedding + attention, rel=1e-6)


def test_the_rate_of_this_device_is_plausible_and_draws_no_random_numbers() -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    assert 1e8 < matmul_rate(torch.device("cpu"), torch.float32) < 1e14
    assert torch.equal(torch.get_rng_state(), before)
