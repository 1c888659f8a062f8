"""Model and server reach their results through the kernels' ops: what torch's dispatcher saw run, not what is imported.

That the loss goes through linear_cross_entropy, which is a function and no op, is in kernels/test_linear_cross_entropy.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from frontrow.foundation.model import FoundationModel
from frontrow.kernels.folded_embedding import FoldedEmbedding
from frontrow.serving.graphs import Graphs
from frontrow.serving.homepage import HomepageEngine, Page
from frontrow.serving.requests import PageRequest
from frontrow.serving.store import Store
from frontrow.training.batches import training_batches
from frontrow.training.data import Dataset
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


class Ops(TorchDispatchMode):
    """`names` of this project's ops that ran, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if op.namespace == "frontrow":
            self.names.append(op.name())
        return op(*args, **(kwargs or {}))


def test_training_embeds_events_and_titles_by_the_op_and_back(tiny_model: FoundationModel, tiny_data: Dataset) -> None:
    model = copy.deepcopy(tiny_model).train()
    batch = next(iter(training_batches(tiny_data, 16, 200, seed=0, epoch=0)))
    with Ops() as ops:
        model.heads.total(model(batch.tokens, batch.offsets, batch.targets, batch.times)).backward()
    forward, back = ["frontrow::event_embedding"] * 2, ["frontrow::event_embedding_backward"] * 2
    assert ops.names == forward + back


def test_inference_embeds_by_the_op(tiny_model: FoundationModel, tiny_data: Dataset) -> None:
    model = copy.deepcopy(tiny_model).eval()
    batch = next(iter(training_batches(tiny_data, 16, 200, seed=0, epoch=0)))
    with Ops() as ops, torch.no_grad():
        model.encode(batch.tokens, batch.offsets)
    assert ops.names == ["frontrow::event_embedding"]


@pytest.mark.parametrize("folded", [True, False], ids=["folded, as on a CPU", "as on a GPU"])
def test_a_homepage_embeds_once_and_scores_once(
    folded: bool, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sums: list[int] = []
    call = FoldedEmbedding.__call__

    def counted(self: FoldedEmbedding, ids: Tensor) -> Tensor:
        sums.append(len(ids))
        return call(self, ids)

    monkeypatch.setattr(FoldedEmbedding, "__call__", counted)
    store = Store.open(tiny_bundle, torch.device("cpu"))
    if not folded:
        store.model.events.folded = None
    engine = HomepageEngine(store)
    with Ops() as ops:
        pages = engine.pages([PageRequest(member) for member in (1000, 1017, -1)])
    assert all(isinstance(page, Page) for page in pages)
    embedded = [] if folded else ["frontrow::event_embedding"]
    assert (ops.names, len(sums)) == ([*embedded, "frontrow::candidate_scoring"], int(folded))


def test_the_nearest_titles_on_a_gpu_are_searched_by_the_op(store: Store) -> None:
    """Without a GPU what it would replay is called, and the op runs; on one that was when it was recorded."""
    graphs = store.graphs or Graphs(store)
    asked = np.random.default_rng(0).normal(size=(3, store.vectors.shape[1])).astype(np.float32)
    with Ops() as ops:
        found = graphs.nearest(asked)
    assert ops.names == ([] if store.vectors.is_cuda else ["frontrow::catalogue_search"])
    assert found[:, :40].tolist() == store.index.search(asked, 40)[1].tolist()
