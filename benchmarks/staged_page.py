"""The homepage put together from the stage models, for repository_shapes.py: what the stages lack, and the ensemble.

All that the measurement knows of the engine's inside is in this file.
Shape letters: K candidates, R rows, D vector width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from ..foundation.schema import WIRE, Tensor
from ..serving.homepage import HomepageEngine, Page, Ranked
from ..serving.page import RowWorth
from ..serving.requests import PageRequest, Prepared
from ..serving.retrieval import SOURCE_ID
from ..serving.store import Store
from ..serving.triton_model import page_request

# Inputs and outputs of page_assembly: the request, and what the stages found.
ASSEMBLY: tuple[tuple[Tensor, ...], tuple[Tensor, ...]] = (
    (
        *WIRE["homepage"][0],
        Tensor("member_vector", "FP32", (-1,)),
        Tensor("title_ids", "INT64", (-1,)),  # candidates as retrieved, with their sources
        Tensor("sources", "UINT8", (-1,)),
        Tensor("best_ids", "INT64", (-1,)),  # the same, best first, with their scores
        Tensor("best_scores", "FP32", (-1,)),
        Tensor("row_chances", "FP32", (-1,)),  # of each row of the catalogue, from the state alone
    ),
    WIRE["homepage"][1],
)
# What this cannot do, in an ensemble and by business logic alike.
LACKS = (
    "candidate_retrieval is not told the events and the context of a request: it proposes no titles by them and what "
    "they name again, and explores by its own day; only pages of stored histories, asked for now, are equal, and only "
    "they are measured",
    "candidate_retrieval proposes nothing more for pinned rows and rows of seen titles",
    "other surfaces than the homepage",
)
ENSEMBLE_LACKS = (
    "an ensemble has no constants: the client sends how many candidates it wants, and the ids of all rows",
    "no condition and no fallback: each request runs each stage",
)


class ForgetfulEngine(HomepageEngine):
    """The engine without what it keeps of members between requests, which no stage does."""

    def _keep_ranking(self, p: Prepared, ranked: Ranked) -> None:
        """Nothing is kept."""


class StagedEngine(HomepageEngine):
    """Assembles pages of what other stages found. Raises ValueError for rows whose candidates they do not propose."""

    def __init__(self, bundle: Path) -> None:
        super().__init__(Store.open(bundle))
        if strange := [s.label for s in self.store.rows.specs if s.pin is not None or s.seen != "exclude"]:
            raise ValueError(f"rows {strange} are pinned or show seen titles: the stages propose nothing for them")

    def page_of(self, tensors: Mapping[str, np.ndarray], now: float) -> Page:
        """The page of one member, of the tensors of ASSEMBLY without a batch dimension."""
        request = page_request(tensors)
        (prepared,) = self.prepare([request], now)
        if not isinstance(prepared, Prepared):
            raise prepared
        page = self._page(request, prepared, self._ranked(request, prepared, tensors))
        self._count([page])
        return replace(page, info=page.info | {"stages_ms": {}})

    def _ranked(self, request: PageRequest, prepared: Prepared, found: Mapping[str, np.ndarray]) -> Ranked:
        store = self.store
        there = found["best_ids"] >= 0
        best, scores = store.title_indices(found["best_ids"][there]), found["best_scores"][there]
        source_of = np.full(store.title_count, SOURCE_ID["none"], np.uint8)
        source_of[store.title_indices(found["title_ids"])] = found["sources"]
        shift, stretch, slope = store.row_ranker.blend.tolist()
        chance = found["row_chances"].astype(np.float64)
        worth = RowWorth(
            (shift + stretch * np.log(chance / (1 - chance))).astype(np.float32),
            slope,
            torch.from_numpy(scores).softmax(0).numpy(),
        )
        vector = torch.from_numpy(found["member_vector"][None])
        level = store.normaliser(vector, [prepared.seen], best[None], scores[None])[0]
        fits = np.packbits(self._eligible(request, prepared, best), axis=1)
        return Ranked(best, scores, source_of[best], fits, worth, float(level))


def ensemble_config() -> str:
    """config.pbtxt of an ensemble of the stages and page_assembly: the inputs of `homepage`, k and all_row_ids."""
    more = (Tensor("k", "INT32", (1,)), Tensor("all_row_ids", "INT64", (-1,)))
    request = [t.name for t in WIRE["homepage"][0]]
    lines = ['name: "ensemble"', 'platform: "ensemble"', "max_batch_size: 64"]
    for side, tensors in (("input", (*WIRE["homepage"][0], *more)), ("output", WIRE["homepage"][1])):
        for t in tensors:
            kind = "STRING" if t.dtype == "BYTES" else t.dtype
            lines.append(
                f'{side} {{ name: "{t.name}" data_type: TYPE_{kind} dims: [ {", ".join(map(str, t.dims))} ] }}'
            )
    steps = (
        ("foundation_model", ("member_id", "events", "context"), ("member_vector", "row_state")),
        ("row_ranking", {"row_state": "row_state", "row_ids": "all_row_ids"}, {"scores": "row_chances"}),
        ("candidate_retrieval", ("member_vector", "member_id", "k", "exclude"),
         {"title_ids": "candidate_ids", "sources": "candidate_sources"}),
        ("candidate_scoring", {"member_vector": "member_vector", "title_ids": "candidate_ids", "k": "k"},
         {"title_ids": "best_ids", "scores": "best_scores"}),
        ("page_assembly",
         {**{name: name for name in (*request, "member_vector", "best_ids", "best_scores", "row_chances")},
          "title_ids": "candidate_ids", "sources": "candidate_sources"},
         [t.name for t in WIRE["homepage"][1]]),
    )  # fmt: skip
    lines.append("ensemble_scheduling {")
    for model, inputs, outputs in steps:
        lines.append(f'  step {{ model_name: "{model}" model_version: -1')
        for side, names in (("input_map", inputs), ("output_map", outputs)):
            pairs = names.items() if isinstance(names, dict) else ((name, name) for name in names)
            lines += [f'    {side} {{ key: "{key}" value: "{value}" }}' for key, value in pairs]
        lines.append("  }")
    return "\n".join([*lines, "}"]) + "\n"
