"""Leave-one-out evaluation over the full catalogue, for the model and for the baselines alike.

The held-out title is ranked against every title the member has not seen; ties go to the smaller id, as on the page.
Metrics are means over all evaluated members.
Shape letters: B members, N titles, T events.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from ..foundation.model import FoundationModel
from .baselines import TooLarge, item_item_scores, popularity_scores, user_user_scores
from .batches import Part, evaluated_members, evaluation_batch, target_positions, training_events
from .data import Dataset

CUTOFF = 10
_CHUNK = 128

# member indices → scores float32 [B, N]
Scorer = Callable[[np.ndarray], np.ndarray]


@torch.no_grad()
def model_scorer(model: FoundationModel, data: Dataset, part: Part, with_request: bool) -> Scorer:
    """Scores by the model: dot products of member and title vectors."""
    model.eval()
    device = next(model.parameters()).device
    vectors = model.title_vectors()

    @torch.no_grad()
    def score(members: np.ndarray) -> np.ndarray:
        tokens, offsets = evaluation_batch(data, members, part, model.config.max_events, with_request)
        member_vectors, _ = model.encode(tokens.to(device), offsets.to(device))
        return (member_vectors @ vectors.T).float().cpu().numpy()

    return score


def score_unseen(score: Scorer, data: Dataset, part: Part, members: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(scores float32 [B, N] with titles seen before the held-out event at −inf, target title index int64 [B], −1 for
    a title that the catalogue lacks)."""
    index = data.title_indices()
    positions = target_positions(data, members, part)
    scores, targets = score(members).astype(np.float32), index[positions]
    for row, (start, stop) in enumerate(zip(data.events.offsets[members], positions, strict=True)):
        seen = index[start:stop]
        scores[row, seen[(seen >= 0) & (seen != targets[row])]] = -np.inf
    return scores, targets


def chunks(data: Dataset) -> list[np.ndarray]:
    """Evaluated member indices, in order, in pieces."""
    members = evaluated_members(data)
    return [members[i : i + _CHUNK] for i in range(0, len(members), _CHUNK)]


def ranks_of_targets(model: FoundationModel, data: Dataset, part: Part, with_request: bool = True) -> np.ndarray:
    """Rank int64 [B] (0 is best) of each evaluated member's held-out title."""
    return ranks_by(model_scorer(model, data, part, with_request), data, part)


def ranks_by(score: Scorer, data: Dataset, part: Part) -> np.ndarray:
    """`ranks_of_targets` by any scores."""
    return np.concatenate([_ranks(*score_unseen(score, data, part, members)) for members in chunks(data)])


def _ranks(scores: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """A target outside the catalogue, or with a NaN score, comes last."""
    own = scores[np.arange(len(targets)), targets][:, None]
    behind = (scores < own) | ((scores == own) & (np.arange(scores.shape[1]) > targets[:, None]))
    ranks = (~behind).sum(1) - 1
    return np.where(targets < 0, scores.shape[1], ranks)


def asked_again(data: Dataset, part: Part, members: np.ndarray) -> np.ndarray:
    """bool [B]: whether the member had seen the held-out title before; it stays among the ranked ones."""
    index, targets = data.title_indices(), target_positions(data, members, part)
    starts = data.events.offsets[members]
    again = [index[t] >= 0 and bool((index[a:t] == index[t]).any()) for a, t in zip(starts, targets, strict=True)]
    return np.array(again, bool)


def ranking_metrics(ranks: np.ndarray) -> dict[str, float]:
    """HR@10, NDCG@10 (one relevant title) and MRR (over the full ranking) of ranks int64 [B]."""
    hit = ranks < CUTOFF
    return {
        f"hr@{CUTOFF}": float(hit.mean()),
        f"ndcg@{CUTOFF}": float((hit / np.log2(ranks + 2.0)).mean()),
        "mrr": float((1.0 / (ranks + 1.0)).mean()),
    }


def evaluate_scorer(score: Scorer, data: Dataset, part: Part) -> dict[str, float]:
    """Ranking metrics and, of the 10 titles shown to each member: coverage (share of the catalogue shown to anyone),
    novelty (mean −log2 of a title's share of training events) and popularity bias (mean popularity rank of what was
    played minus that of what is shown, as a share of the catalogue; above 0: shown titles are more popular).

    Where some of the held-out titles had been seen before, `…_first_time` are the metrics of the others: a title seen
    before stands out, as all other such titles are filtered."""
    index = data.title_indices()
    used = index[training_events(data) & (index >= 0)]
    plays = np.bincount(used, minlength=len(data.titles))
    popularity_rank = np.empty(len(plays))
    popularity_rank[np.lexsort((np.arange(len(plays)), -plays))] = np.arange(len(plays))
    ranks, shown, targets, again = [], [], [], []
    for members in chunks(data):
        scores, target = score_unseen(score, data, part, members)
        ranks.append(_ranks(scores, target))
        targets.append(target)
        again.append(asked_again(data, part, members))
        shown.append(np.argsort(-scores, axis=1, kind="stable")[:, :CUTOFF])
    top, played = np.concatenate(shown), np.concatenate(targets)
    played = played[played >= 0]
    share = (plays + 1) / (plays.sum() + len(plays))
    place, known = np.concatenate(ranks), np.concatenate(again)
    first = ranking_metrics(place[~known]) if known.any() and not known.all() else {}
    return (
        ranking_metrics(place)
        | {f"{name}_first_time": value for name, value in first.items()}
        | {
            "coverage": float(len(np.unique(top)) / len(plays)),
            "popularity_rank_shown": float(popularity_rank[top].mean()),
            "popularity_rank_played": float(popularity_rank[played].mean()),
            "popularity_bias": float((popularity_rank[played].mean() - popularity_rank[top].mean()) / len(plays)),
            "novelty_bits": float(-np.log2(share[top]).mean()),
        }
    )


def evaluate(model: FoundationModel, data: Dataset, part: Part = "test") -> dict[str, Any]:
    """The table of model and baselines on one split: {"model", "model_without_request_fields", "baselines": {name},
    "left_out": {name of a baseline: why}}.

    Request-time fields tell the model when the next event happens, so quality is given with and without them.
    """
    baselines, left_out = {}, {}
    for name, scores in (
        ("popularity", popularity_scores),
        ("item_item_cf", item_item_scores),
        ("user_user_cf", user_user_scores),
    ):
        try:
            baselines[name] = evaluate_scorer(scores(data, part), data, part)
        except TooLarge as error:
            left_out[name] = str(error)
    return {
        "part": part,
        "members": len(evaluated_members(data)),
        "model": evaluate_scorer(model_scorer(model, data, part, True), data, part),
        "model_without_request_fields": evaluate_scorer(model_scorer(model, data, part, False), data, part),
        "baselines": baselines,
        "left_out": left_out,
    }
