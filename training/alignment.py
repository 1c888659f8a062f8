"""The vectors of successive trainings in one space, so that those of a new bundle compare with those of the last.

Two trainings of one model, even warm-started ones, find equally good spaces that have nothing to do with each other.
Scores are dot products, and any pair of maps P (members) and Q (titles) with P Qᵀ = 1 keeps them. Which pair: each
model's U Vᵀ is factored by a thin SVD into balanced halves (U, V member and title vectors; "Orthogonal Low Rank
Embedding Stabilization", RecSys 2025, arXiv 2508.07574; the recipe through QR factors is ours), an orthogonal map turns
the new titles' half towards the reference's over the titles that both have (Procrustes), and the reference's balancing
is undone, so that the reference stays as it is served. Where an orthogonal map alone, or nothing at all, brings titles
and members nearer, that is taken: a warm start keeps its space. P and Q are then multiplied into weights that exist:
nothing is added to the model, and its own title vectors are those that are served.
Shape letters: B members, N titles, D vector width.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..foundation.bundle import load_bundle
from ..foundation.encoding import Encoded, serving_tokens
from ..foundation.model import FoundationModel
from .data import Dataset

MEMBERS = 2000  # whose vectors stand for all in the balancing
UNTURNED = "as they are"
_CHUNK = 128
_RIDGE = 1e-4  # of the mean squared length: directions that no member or title has stay finite


Maps = tuple[np.ndarray, np.ndarray]  # (P, Q) float64 [D, D] with P Qᵀ = 1


@dataclass(frozen=True)
class Space:
    """Vectors of one training. title_ids int64 [N] rising, titles [N, D]; member_ids int64 [B] rising, members [B, D];
    float32."""

    title_ids: np.ndarray
    titles: Tensor
    member_ids: np.ndarray
    members: Tensor


@torch.no_grad()
def space_of(
    model: FoundationModel,
    title_ids: np.ndarray,
    titles: Tensor,
    member_ids: np.ndarray,
    histories: Encoded,
    wanted: np.ndarray | None = None,
) -> Space:
    """The space of a model in evaluation mode: its title vectors [N, D], and the vectors of up to MEMBERS members,
    evenly drawn from `wanted` (ids, of `member_ids`) or from all, as requests without any context ask for them."""
    ids = member_ids if wanted is None or not len(wanted) else wanted
    some = ids[np.unique(np.linspace(0, len(ids) - 1, min(MEMBERS, len(ids))).astype(np.int64))]
    nothing = np.zeros(model.schema.width, np.int32)
    longest, found = model.config.max_events, []
    for piece in np.array_split(np.searchsorted(member_ids, some), max(1, len(some) // _CHUNK)):
        tokens = [
            serving_tokens(model.schema, histories.member(m).ids[-longest - 1 :], nothing)[-longest - 1 :]
            for m in piece.tolist()
        ]
        offsets = np.cumsum([0, *map(len, tokens)])
        found.append(model.encode(torch.from_numpy(np.concatenate(tokens)), torch.from_numpy(offsets))[0])
    return Space(title_ids, titles.detach().float(), some, torch.cat(found).float())


def align(model: FoundationModel, data: Dataset, bundle: Path) -> tuple[FoundationModel, dict[str, Any]]:
    """A copy of a model, in evaluation mode on the CPU, whose vectors compare with a bundle's; and the drift before and
    after, by which of `ways` titles and members together are nearest. Raises BundleError for a bundle that is not
    whole, ValueError for one that no map joins with the model."""
    there = load_bundle(bundle)
    both = np.intersect1d(data.member_ids, there.member_ids)
    theirs = space_of(there.build_model(), there.titles.ids, there.vectors, there.member_ids, there.histories, both)

    def ours(model: FoundationModel) -> Space:
        return space_of(model, data.titles.ids, model.title_vectors(), data.member_ids, data.events, both)

    aligned, before = copy.deepcopy(model).eval(), ours(model)
    found = ways(before, theirs)
    far = {way: _apart(drift(moved(before, pair), theirs)) for way, pair in found.items()}
    best = min(far, key=lambda way: far[way])
    if best != UNTURNED:
        apply(aligned, found[best])
    about = {"bundle": there.version, "manifest_sha256": there.fingerprint, "way": best}
    return aligned, {**about, "before": drift(before, theirs), "after": drift(ours(aligned), theirs)}


def ways(new: Space, reference: Space) -> dict[str, Maps]:
    """What may bring the new vectors nearest: nothing where a warm start kept the space, one orthogonal map for members
    and titles, which keeps lengths, or the pair of `maps`. Raises ValueError as `maps` does."""
    width = new.titles.shape[1]
    pair = maps(new, reference)
    return {UNTURNED: (np.eye(width), np.eye(width)), "orthogonal map": rotation(new, reference), "balanced": pair}


def rotation(new: Space, reference: Space) -> Maps:
    """The orthogonal map, twice, that brings the titles of both nearest (Procrustes)."""
    _, ours, theirs = np.intersect1d(new.title_ids, reference.title_ids, return_indices=True)
    u, _, v = np.linalg.svd((new.titles[ours].T @ reference.titles[theirs]).double().numpy())
    return u @ v, u @ v


def moved(space: Space, pair: Maps) -> Space:
    """The space by maps (P, Q): members U P, titles V Q."""
    members, titles = (
        x.double() @ torch.from_numpy(m) for x, m in zip((space.members, space.titles), pair, strict=True)
    )
    return replace(space, titles=titles.float(), members=members.float())


def _apart(found: dict[str, Any]) -> float:
    """Squared relative distances of titles and members, of those that both have."""
    return sum(found[name]["distance"] ** 2 for name in ("titles", "members") if found[name]["common"])


def balancing(space: Space) -> tuple[np.ndarray, np.ndarray]:
    """(P, Q) float64 [D, D] with P Qᵀ = 1, such that U P and V Q have the same second moments: the singular values of
    U Vᵀ, largest first."""
    left, right = (_triangle(vectors.double().numpy()) for vectors in (space.members, space.titles))
    a, values, b = np.linalg.svd(left @ right.T)
    root = np.sqrt(values)
    return np.linalg.solve(left, a * root), np.linalg.solve(right, b.T * root)


def _triangle(vectors: np.ndarray) -> np.ndarray:
    """R float64 [D, D] of a QR factorisation of vectors [X, D] scaled to X = 1, with a ridge below them."""
    width = vectors.shape[1]
    vectors = vectors / max(1, len(vectors)) ** 0.5
    ridge = (_RIDGE * np.square(vectors).sum() / width) ** 0.5 or 1.0
    return np.linalg.qr(np.concatenate([vectors, ridge * np.eye(width)]))[1]


def maps(new: Space, reference: Space) -> Maps:
    """(P, Q) float64 [D, D] with P Qᵀ = 1 that bring the new members and titles into the reference's space. Raises
    ValueError for other widths, values that are not finite, or fewer titles in both than the vectors are wide."""
    widths = new.titles.shape[1], reference.titles.shape[1]
    if widths[0] != widths[1]:
        raise ValueError(f"title vectors are {widths[0]} wide and the reference's {widths[1]}: no rotation joins them")
    for space, whose in ((new, "the new"), (reference, "the reference's")):
        if not (space.titles.isfinite().all() and space.members.isfinite().all()):
            raise ValueError(
                f"{whose} vectors have values that are not finite; train again, or align to another bundle"
            )
    _, ours, theirs = np.intersect1d(new.title_ids, reference.title_ids, return_indices=True)
    if len(ours) < widths[0]:
        raise ValueError(f"only {len(ours)} titles are in the reference too; {widths[0]} or more fix a rotation")
    (p, q), (p_reference, q_reference) = balancing(new), balancing(reference)
    halves = new.titles[ours].double().numpy() @ q, reference.titles[theirs].double().numpy() @ q_reference
    u, _, v = np.linalg.svd(halves[0].T @ halves[1])
    turn = u @ v
    # The inverse of one map of a pair is the other's transpose.
    return p @ turn @ q_reference.T, q @ turn @ p_reference.T


@torch.no_grad()
def apply(model: FoundationModel, maps: Maps) -> None:
    """Multiply (P, Q) into the weights: members become U P, titles V Q, everything between stays what it was.

    The id table is both a title's vector and an event's input: its columns of the input projection take P, which undoes
    Q.
    """
    p, q = (torch.from_numpy(m) for m in maps)
    events, head, schema = model.events, model.heads.member, model.schema
    at = events.names.index(schema.id_field.name)
    first = sum(f.width for f in schema.fields[:at])
    columns = slice(first, first + schema.id_field.width)
    events.tables[at].copy_(events.tables[at].double() @ q)
    events.projection.weight[:, columns] = (events.projection.weight[:, columns].double() @ p).float()
    head.weight.copy_(p.T @ head.weight.double())
    head.bias.copy_(head.bias.double() @ p)
    if (tower := model.titles.embedding) is not None:
        tower.projection.weight.copy_(q.T @ tower.projection.weight.double())
        tower.projection.bias.copy_(tower.projection.bias.double() @ q)


def drift(new: Space, reference: Space) -> dict[str, Any]:
    """How far vectors of what both have lie apart: of titles and members, how many, the mean cosine and the relative
    distance ‖new − reference‖ / ‖reference‖, over all of them together."""
    found = {}
    for name in ("titles", "members"):
        ids = [getattr(space, f"{name.removesuffix('s')}_ids") for space in (new, reference)]
        common, ours, theirs = np.intersect1d(*ids, return_indices=True)
        one, other = getattr(new, name)[ours], getattr(reference, name)[theirs]
        found[name] = {
            "common": len(common),
            "cosine": float(torch.cosine_similarity(one, other).mean()) if len(common) else None,
            "distance": float((one - other).norm() / other.norm()) if len(common) else None,
        }
    return found
