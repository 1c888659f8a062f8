"""Training the row ranker on the frozen state of layer k (the subgraph pattern), and its evaluation.

A row is relevant at a moment if the next title is among the first C titles that the row would show the member then:
the row's eligible titles (unseen ones, seen ones or both, as the row says) in the order of the foundation model's
scores behind those it names to stand first. Merely belonging to the row would teach the ranker how large rows are.
Shape letters: P moments, R rows, N titles, M d_model, D vector width, C titles shown per row.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as nnf
from torch import Tensor

from ..foundation.encoding import offset_tokens
from ..foundation.model import FoundationModel
from ..foundation.row_ranker import ROW_STATISTICS, RowRanker
from ..serving.page import FIRST_TITLES
from ..serving.rows import MemberView, RowCatalogue
from .batches import Part, evaluated_members, target_positions, training_ends
from .data import Dataset

MOMENTS_PER_MEMBER = 40
ONE_WATCHING = 4 * 3600  # seconds: events about the same title no further apart are about one choice
_CHUNK = 64


@dataclass(frozen=True)
class Moments:
    """state float32 [P, M]; relevant bool [P, R]; shown bool [P, R]: whether the row has any title to show."""

    state: Tensor
    relevant: Tensor
    shown: Tensor


# encoded history int32 [T, C] → what row expressions may ask
ViewOf = Callable[[np.ndarray], MemberView]


def choices(data: Dataset) -> np.ndarray:
    """bool [T]: the events that a page may have led to. What follows within four hours about the same title (a pause,
    the next episode, a like) is not one: nothing was to be chosen then, and nobody looked at rows."""
    title, time = data.title_indices(), data.events.timestamp
    found = np.ones(len(title), bool)
    found[1:] = (title[1:] != title[:-1]) | (np.diff(time) > ONE_WATCHING)
    found[data.events.offsets[:-1][np.diff(data.events.offsets) > 0]] = True
    return found


def held_out_choices(data: Dataset, part: Part) -> np.ndarray:
    """Index int64 [P] into `data.events` of the held-out events of a part that are choices of titles."""
    positions = target_positions(data, evaluated_members(data), part)
    return positions[choices(data)[positions] & (data.title_indices()[positions] >= 0)]


@torch.no_grad()
def moments(
    model: FoundationModel,
    data: Dataset,
    rows: RowCatalogue,
    view_of: ViewOf,
    part: Part | None,
    seed: int = 0,
) -> Moments:
    """Moments of training events (part None: at most 40 a member, drawn at random), or of the held-out event of each
    evaluated member; of either those that are choices of titles."""
    model.eval()
    rng = np.random.default_rng(seed)
    tokens = offset_tokens(data.schema, data.events.ids, data.events.offsets)
    vectors, index = model.title_vectors().cpu(), data.title_indices()
    usable = choices(data) & (index >= 0)
    members = evaluated_members(data)
    found: list[tuple[Tensor, Tensor, Tensor]] = []
    for begin in range(0, len(members), _CHUNK):
        chunk = members[begin : begin + _CHUNK]
        stops = training_ends(data)[chunk] if part is None else target_positions(data, chunk, part) + 1
        starts = np.maximum(data.events.offsets[chunk], stops - model.config.max_events)
        used = np.concatenate([np.arange(a, b) for a, b in zip(starts, stops, strict=True)])
        offsets = torch.from_numpy(np.concatenate([[0], np.cumsum(stops - starts)]))
        device = next(model.parameters()).device
        hidden, state = model.hidden(torch.from_numpy(tokens[used]).to(device), offsets.to(device))
        picked: list[int] = []
        for i, (first, count) in enumerate(zip(offsets[:-1].tolist(), (stops - starts).tolist(), strict=True)):
            if part is not None:
                picked.append(int(offsets[i + 1]) - 1)
            else:
                own = first + np.flatnonzero(usable[used[first : first + count]])
                picked += rng.permutation(own)[:MOMENTS_PER_MEMBER].tolist()
        picked = [p for p in picked if usable[used[p]]]
        at = used[picked]
        scores = (model.heads.member(hidden[picked]).cpu() @ vectors.T).float()
        relevant, shown = _relevance(data, rows, view_of, scores, index, at)
        found.append((state[picked].float().cpu(), relevant, shown))
    return Moments(*(torch.cat(parts) for parts in zip(*found, strict=True)))


def _relevance(
    data: Dataset, rows: RowCatalogue, view_of: ViewOf, scores: Tensor, index: np.ndarray, at: np.ndarray
) -> tuple[Tensor, Tensor]:
    """(relevant, shown) bool [P, R] for the events `at`, by scores [P, N]."""
    starts = data.events.offsets[np.searchsorted(data.events.offsets, at, side="right") - 1]
    target, seen = torch.from_numpy(index[at]), torch.zeros_like(scores, dtype=torch.bool)
    views: list[MemberView] = []
    for p, (start, position) in enumerate(zip(starts.tolist(), at.tolist(), strict=True)):
        before = index[start:position]
        seen[p, torch.from_numpy(before[before >= 0])] = True
        views.append(view_of(data.events.ids[start:position]))
    static = torch.from_numpy(rows.static).float()
    ahead_of, size = torch.zeros(len(at), len(rows)), torch.zeros(len(at), len(rows))
    belongs = static.T[target] > 0
    for way in {(s.seen, s.first) for s in rows.specs}:  # rows of the same way share the work over all titles
        own = [i for i, s in enumerate(rows.specs) if (s.seen, s.first) == way]
        allowed = {"exclude": ~seen, "only": seen, "any": torch.ones_like(seen)}[way[0]]
        ahead = _ahead(_first(data, scores, way[1]), target) & allowed
        ahead_of[:, own], size[:, own] = ahead.float() @ static[own].T, allowed.float() @ static[own].T
        for row in set(own) & set(rows.dynamic):
            for p, view in enumerate(views):
                within = torch.from_numpy(np.flatnonzero(rows.eligibility[row].mask(view)))
                ahead_of[p, row], size[p, row] = ahead[p, within].sum(), allowed[p, within].sum()
                belongs[p, row] = (within == target[p]).any()
        belongs[:, own] &= allowed.gather(1, target[:, None])
    longest = torch.tensor([min(s.max_titles, FIRST_TITLES) for s in rows.specs])
    least = torch.tensor([min(s.min_titles, FIRST_TITLES) for s in rows.specs])
    return belongs & (ahead_of < longest), size >= least


def _ahead(scores: Tensor, target: Tensor) -> Tensor:
    """bool [P, N]: the titles before the target [P], by scores [P, N]; ties go to the smaller id."""
    own = scores.gather(1, target[:, None])
    return (scores > own) | ((scores == own) & (torch.arange(scores.shape[1]) < target[:, None]))


def _first(data: Dataset, scores: Tensor, first: tuple[int, ...]) -> Tensor:
    """Scores [P, N] with the titles that a row names at the top, in its order."""
    named = [i for t in dict.fromkeys(first) for i in np.flatnonzero(data.titles.ids == t)]
    if named:
        scores = scores.clone()
        scores[:, named] = scores.max() + torch.arange(len(named), 0, -1.0)
    return scores


def train_row_ranker(
    train: Moments,
    validation: Moments,
    row_ids: Tensor,
    features: Tensor,
    epochs: int = 20,
    seed: int = 0,
    on_epoch: Callable[[int, int], None] = lambda done, total: None,
) -> RowRanker:
    """Binary cross-entropy over the rows that could be shown; the epoch with the best validation NDCG is kept.

    row_ids int64 [R]; features [R, D + ROW_STATISTICS], from `row_features`.
    """
    torch.manual_seed(seed)
    ranker = RowRanker(row_ids, train.state.shape[1], features.shape[1] - ROW_STATISTICS)
    optimizer = torch.optim.AdamW(ranker.parameters(), lr=2e-3, weight_decay=0.05)
    best, kept = -1.0, {k: v.clone() for k, v in ranker.state_dict().items()}
    for epoch in range(epochs):
        ranker.train()
        for index in torch.randperm(len(train.state)).split(512):
            vectors, biases = ranker.row_vectors(row_ids, features, id_dropout=0.1)
            logits = ranker(train.state[index], vectors, biases)
            weight = train.shown[index].float()
            loss = nnf.binary_cross_entropy_with_logits(logits, train.relevant[index].float(), weight)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        quality = row_metrics(row_scores(ranker, validation, row_ids, features), validation)["row_ndcg"]
        if quality > best:
            best, kept = quality, {k: v.clone() for k, v in ranker.state_dict().items()}
        on_epoch(epoch + 1, epochs)
    ranker.load_state_dict(kept)
    return calibrate(ranker.eval(), validation, row_ids, features)


def calibrate(ranker: RowRanker, validation: Moments, row_ids: Tensor, features: Tensor) -> RowRanker:
    """Stretch and shift the logits so that they are probabilities of moments the model was not trained on (Platt 1999).

    Titles of training events stand further ahead than later ones do: without this the scores are a third too high.
    The order of rows stays as it is. Measured on MovieLens-100K, test: predicted 0.088 before, 0.073 after, happened
    0.066; training on validation moments themselves is better calibrated but ranks worse (AUC 0.690 for 0.7035).
    """
    logits = row_scores(ranker, validation, row_ids, features)[validation.shown]
    found = fitted_logits(logits[:, None], validation.relevant[validation.shown])
    if found is None:
        return ranker
    shift, stretch = found.tolist()
    with torch.no_grad():
        for parameter in (ranker.down.weight, ranker.down.bias, ranker.bias.weight, ranker.bias.bias):
            parameter.mul_(stretch)
        ranker.bias.bias.add_(shift)
    return ranker


def fitted_logits(features: Tensor, happened: Tensor) -> Tensor | None:
    """Shift and weights [1 + F], the weights above 0, that make of features [S, F] logits of what happened, bool [S],
    by logistic regression. None where nothing or everything happened."""
    if not 0 < int(happened.sum()) < len(happened):
        return None
    fitted = torch.zeros(1 + features.shape[1], requires_grad=True)  # shift; logs of the weights
    optimizer = torch.optim.LBFGS([fitted], max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        logits = features @ fitted[1:].exp() + fitted[0]
        wrong = nnf.binary_cross_entropy_with_logits(logits, happened.float())
        wrong = wrong + 1e-3 * fitted.square().sum()  # rows that are always right would ask for an endless weight
        wrong.backward()
        return wrong

    optimizer.step(loss)
    return torch.cat([fitted[:1], fitted[1:].exp()]).detach()


@torch.no_grad()
def row_scores(ranker: RowRanker, moments: Moments, row_ids: Tensor, features: Tensor) -> Tensor:
    """Logits [P, R]."""
    ranker.eval()
    return ranker(moments.state, *ranker.row_vectors(row_ids, features))


def row_metrics(scores: Tensor, moments: Moments) -> dict[str, float]:
    """NDCG and AUC of the relevant rows among those shown (tied rows count half in AUC), and how often the top row is
    relevant; means over the moments that have a relevant and an irrelevant row, NaN if none has."""
    relevant = moments.relevant & moments.shown
    usable = relevant.any(1) & (moments.shown & ~relevant).any(1)
    scores = scores.masked_fill(~moments.shown, -torch.inf)[usable]
    relevant, irrelevant = relevant[usable], (moments.shown & ~relevant)[usable]
    gains = relevant.gather(1, scores.argsort(dim=1, descending=True, stable=True)).float()
    discount = 1.0 / torch.log2(torch.arange(gains.shape[1]) + 2.0)
    ideal = (relevant.float().sort(dim=1, descending=True).values * discount).sum(1)
    difference = scores[:, :, None] - scores[:, None, :]  # [moments, R, R]
    won = (difference > 0).float() + 0.5 * (difference == 0)
    pairs = relevant[:, :, None] & irrelevant[:, None, :]
    return {
        "row_ndcg": float(((gains * discount).sum(1) / ideal).mean()),
        "row_auc": float(((won * pairs).sum((1, 2)) / pairs.sum((1, 2))).mean()),
        "top_row_relevant": float(gains[:, 0].mean()),
        "moments": int(usable.sum()),
    }


def evaluate_rows(
    logits: Mapping[str, Tensor], train: Moments, test: Moments, features: Tensor, row_plays: Tensor
) -> dict[str, dict[str, float | None]]:
    """Rankings of rows by their logits [P, R] against rows by popularity (mean plays of their titles [R]), by size, and
    by how often each was relevant in training; None where no moment can tell. Of logits also the calibration: over all
    rows that could be shown the mean predicted probability, and how often the row was relevant."""
    count, size = len(test.state), features[:, -3]
    usual = (train.relevant & train.shown).float().mean(0)
    happened = float(test.relevant[test.shown].float().mean())
    table = {
        name: row_metrics(scores, test)
        | {"predicted": float(scores.sigmoid()[test.shown].mean()), "happened": happened}
        for name, scores in logits.items()
    }
    table |= {
        "by_popularity": row_metrics(row_plays.expand(count, -1), test),
        "by_size": row_metrics(size.expand(count, -1), test),
        "by_training_relevance": row_metrics(usual.expand(count, -1), test),
    }
    return {by: {name: None if v != v else v for name, v in found.items()} for by, found in table.items()}
