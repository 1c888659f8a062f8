"""Does what each head says happen as often as it says? Reliability, calibration error, NLL, Brier score, temperature.

A head gives probabilities of V values at P moments. Two readings are usual, and both are given:
    top    the most probable value of each moment, and whether it happened (Guo et al. 2017)
    each   every pair of a moment and a value (classwise, Kull et al. 2019, all values pooled)
Heads of independent values (genres, rows) have the second only. Bins are of equal mass, not of equal width (Nixon et
al. 2019): of equally many claims for `top`, of equally many predicted happenings for `each`, most of whose claims are
near 0. The calibration error is Σ over bins |predicted − happened| · claims / P, so of `each` per moment, added up over
its values. By chance it is above 0 for perfect probabilities too: `ece_if_perfect` is what those would have on average.
Shape letters: P moments, V values, X claims, N titles, R rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as nnf
from torch import Tensor

from ..foundation.model import FoundationModel
from ..foundation.schema import FIRST
from ..serving.homepage import HomepageEngine
from .batches import Part, evaluation_batch, target_positions
from .data import Dataset
from .evaluate import chunks
from .row_ranking import held_out_choices
from .served_rows import served_at

BINS = 15
_Z = 1.959964  # of a 95 % interval
_GOLDEN = 0.618034


@dataclass(frozen=True)
class Claims:
    """What a head says of P moments: logits float32 [P, V]; happened bool [P, V]; possible bool [P, V]: other values
    are no claims. exclusive: exactly one value happens at a moment, so that the logits are those of a softmax."""

    logits: Tensor
    happened: Tensor
    possible: Tensor
    exclusive: bool

    def __post_init__(self) -> None:
        if wrong := int((self.possible & ~self.logits.isfinite()).any(1).sum()):
            raise ValueError(f"{wrong} of {len(self.logits)} moments have logits that are not finite; train again")

    def probabilities(self, temperature: float = 1.0) -> Tensor:
        """float32 [P, V]; 0 for what is not possible."""
        if self.exclusive:
            return (self.logits / temperature).masked_fill(~self.possible, -torch.inf).softmax(1)
        return (self.logits / temperature).sigmoid() * self.possible

    def nll(self, temperature: float = 1.0) -> float:
        """Mean negative log-likelihood of a moment, nats; of independent values their sum."""
        scaled = self.logits / temperature
        if self.exclusive:
            target = self.happened.float().argmax(1)
            return nnf.cross_entropy(scaled.masked_fill(~self.possible, -torch.inf), target).item()
        each = nnf.binary_cross_entropy_with_logits(scaled, self.happened.float(), reduction="none")
        return each.masked_fill(~self.possible, 0.0).sum(1).mean().item()


def fit_temperature(claims: Claims) -> float:
    """The temperature of least NLL, between 1/20 and 20 (Guo et al. 2017), by golden-section search: the NLL is convex
    in 1 / temperature. Dividing all logits by it changes no order."""
    low, high = 1 / 20, 20.0
    left, right = high - _GOLDEN * (high - low), low + _GOLDEN * (high - low)
    at_left, at_right = claims.nll(1 / left), claims.nll(1 / right)
    while high - low > 1e-4 * low:
        if at_left <= at_right:
            high, right, at_right = right, left, at_left
            left = high - _GOLDEN * (high - low)
            at_left = claims.nll(1 / left)
        else:
            low, left, at_left = left, right, at_right
            right = low + _GOLDEN * (high - low)
            at_right = claims.nll(1 / right)
    return 2 / (low + high)


def wilson(happened: np.ndarray, count: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """95 % interval of a share, of `happened` in `count` (Wilson 1927): both ends float64."""
    share, z2 = happened / count, _Z**2
    middle = (share + z2 / (2 * count)) / (1 + z2 / count)
    half = _Z / (1 + z2 / count) * np.sqrt(share * (1 - share) / count + z2 / (4 * count**2))
    return middle - half, middle + half


def reliability(
    predicted: np.ndarray, happened: np.ndarray, equal: Literal["claims", "predicted"] = "claims", bins: int = BINS,
    moment: np.ndarray | None = None,
) -> list[dict[str, float]]:  # fmt: skip
    """Claims of probability float [X] that happened, bool [X], in bins from the least probable up.

    A bin has the mean predicted, the share that happened with its 95 % interval, the number of claims and `deviation`,
    the standard deviation of that share if all is right. equal: what each bin has as much of, claims or predicted
    happenings. moment: int64 [X] of each claim, where exactly one of a moment's happens; without it claims are
    independent."""
    order = np.argsort(predicted, kind="stable")
    p, h = predicted[order].astype(np.float64), happened[order].astype(np.float64)
    weight = np.ones(len(p)) if equal == "claims" else p
    into = np.minimum((np.cumsum(weight) - weight / 2) / max(weight.sum(), 1e-300) * bins, bins - 1).astype(np.int64)
    count, said, came, spread = (np.bincount(into, w, bins) for w in (np.ones(len(p)), p, h, p * (1 - p)))
    if moment is not None and len(p):  # of the claims of one moment in a bin at most one happens
        of = moment[order]
        together = np.bincount(of * bins + into, p, (of.max() + 1) * bins).reshape(-1, bins)
        spread = (together * (1 - together)).clip(0).sum(0)
    some = count > 0
    count, said, came, spread = (x[some] for x in (count, said, came, spread))
    low, high = wilson(came, count)
    columns = {"predicted": said / count, "happened": came / count, "from": low, "to": high,
               "claims": count, "deviation": np.sqrt(spread) / count}  # fmt: skip
    return [dict(zip(columns, line, strict=True)) for line in zip(*(c.tolist() for c in columns.values()), strict=True)]


def calibration_error(table: list[dict[str, float]], moments: int) -> dict[str, float]:
    """ece, and ece_if_perfect with the value that perfect probabilities exceed in 5 % of cases, of a reliability table;
    by the normal approximation of each bin's count, bins taken as independent."""
    gap, share, deviation = (
        np.array([f(line) for line in table])
        for f in (
            lambda b: abs(b["predicted"] - b["happened"]),
            lambda b: b["claims"] / moments,
            lambda b: b["deviation"],
        )
    )
    mean = float((share * deviation).sum() * np.sqrt(2 / np.pi))
    spread = float(np.sqrt((np.square(share * deviation) * (1 - 2 / np.pi)).sum()))
    return {"ece": float((gap * share).sum()), "ece_if_perfect": mean, "ece_if_perfect_95": mean + 1.645 * spread}


def calibration_of(claims: Claims, temperature: float = 1.0) -> dict[str, Any]:
    """nll, brier (mean over moments of Σ over values (p − happened)²) and, by reading, calibration error and bins."""
    p, happened, possible = claims.probabilities(temperature), claims.happened, claims.possible
    found: dict[str, Any] = {
        "temperature": temperature,
        "nll": claims.nll(temperature),
        "brier": ((p - happened.float()).square() * possible).sum(1).mean().item(),
        "predicted": p[possible].double().mean().item(),
        "happened": happened[possible].double().mean().item(),
    }
    moment = possible.nonzero()[:, 0].numpy() if claims.exclusive else None
    readings = {"each": reliability(p[possible].numpy(), happened[possible].numpy(), "predicted", moment=moment)}
    if claims.exclusive:
        confidence, top = p.max(1)
        right = happened.gather(1, top[:, None])[:, 0]
        readings["top"] = reliability(confidence.numpy(), right.numpy(), "claims")
    for name, table in readings.items():
        found[name] = {**calibration_error(table, len(p)), "bins": table}
    return found


def before_and_after(validation: Claims, test: Claims) -> dict[str, Any] | None:
    """The calibration on test as it is and with the temperature fitted on validation; None where a head has nothing to
    say: no moment, or one value only."""
    if not len(validation.logits) or not len(test.logits) or (test.exclusive and test.logits.shape[1] < 2):
        return None
    temperature = fit_temperature(validation)
    return {
        "moments": len(test.logits),
        "values": test.logits.shape[1],
        "before": calibration_of(test),
        "after": calibration_of(test, temperature),
    }


@torch.no_grad()
def head_claims(model: FoundationModel, data: Dataset, part: Part) -> dict[str, Claims]:
    """Claims by head, about the held-out events of evaluated members; the title head twice: `titles` over the whole
    catalogue, as it was trained, and `new titles` over those the member has not seen, where the next is one of them.

    Takes 6 bytes per member and title.
    """
    model.eval()
    device, heads, schema = next(model.parameters()).device, model.heads, data.schema
    vectors, index, found = model.title_vectors(), data.title_indices(), dict[str, list[Claims]]()
    for members in chunks(data):
        tokens, offsets = evaluation_batch(data, members, part, model.config.max_events, True)
        hidden, _ = model.transformer.last(
            model.events(tokens.to(device)), offsets.to(device), model.config.state_layer
        )
        at = target_positions(data, members, part)
        targets = torch.from_numpy(data.events.ids[at]).long() - FIRST
        seen = torch.zeros(len(members), len(vectors), dtype=torch.bool)
        for line, (start, stop) in enumerate(zip(data.events.offsets[members], at, strict=True)):
            before = index[start:stop]
            seen[line, torch.from_numpy(before[before >= 0])] = True
        scores = (heads.member(hidden) @ vectors.T).float().cpu()
        title = torch.from_numpy(index[at])
        whole = _exclusive(scores, title)
        found.setdefault("titles", []).append(whole)
        fresh = ~seen[title >= 0].gather(1, title[title >= 0, None])[:, 0]
        found.setdefault("new titles", []).append(replace(_rows(whole, fresh), possible=~seen[title >= 0][fresh]))
        for field, linear in zip(heads.fields, heads.linear, strict=True):
            target = targets[:, slice(*schema.spans[field.name])]
            logits = linear(hidden).float().cpu()
            one = _exclusive(logits, target[:, 0]) if field.kind != "categories" else _several(logits, target)
            found.setdefault(field.name, []).append(one)
    return {name: _joined(parts) for name, parts in found.items()}


def row_claims(engine: HomepageEngine, data: Dataset, part: Part) -> Claims:
    """What is said of each row that could be the first of a page: that the next title is among its first."""
    found = served_at(engine, data, held_out_choices(data, part))
    shown = found.moments.shown
    with torch.no_grad():
        logits = found.blended(engine.store.row_ranker.cpu())
    return Claims(logits, found.moments.relevant & shown, shown, False)


def _exclusive(logits: Tensor, target: Tensor) -> Claims:
    """Of logits [P, V] and targets int64 [P]; moments without a target (below 0) are left out."""
    there = target >= 0
    happened = nnf.one_hot(target[there], logits.shape[1]).bool()
    return Claims(logits[there], happened, torch.ones_like(happened), True)


def _several(logits: Tensor, target: Tensor) -> Claims:
    """Of logits [P, V] and targets int64 [P, slots], below 0 where a slot is empty."""
    happened = torch.zeros(len(logits), logits.shape[1] + 1, dtype=torch.bool)
    happened.scatter_(1, torch.where(target < 0, logits.shape[1], target), True)
    there = (target >= 0).any(1)
    happened = happened[there, :-1]
    return Claims(logits[there], happened, torch.ones_like(happened), False)


def _rows(claims: Claims, kept: Tensor) -> Claims:
    return replace(claims, logits=claims.logits[kept], happened=claims.happened[kept], possible=claims.possible[kept])


def _joined(parts: list[Claims]) -> Claims:
    return Claims(
        torch.cat([p.logits for p in parts]),
        torch.cat([p.happened for p in parts]),
        torch.cat([p.possible for p in parts]),
        parts[0].exclusive,
    )


def heads_report(validation: Mapping[str, Claims], test: Mapping[str, Claims]) -> dict[str, dict[str, Any]]:
    """`before_and_after` of every head that has something to say."""
    both = {name: before_and_after(validation[name], test[name]) for name in test}
    return {name: found for name, found in both.items() if found is not None}
