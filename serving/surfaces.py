"""The surfaces beside the homepage: one row of titles each, from the same model, in the same batches.

search: what the names of titles have in common with a query, by `TitleSearch`: tiers (the whole name, its beginning,
words, typos), the member's scores only within a tier, for who types a whole name wants that title. Titles the member
has seen are found too: people search for what they know.
more_like_this: the 100 titles nearest to a title that the member has not seen, in order of the member's scores; for
somebody of whom nothing is known, in order of similarity. Similarity is the dot product of title vectors as they are,
the one that was trained and that the store's index holds; on MovieLens-100K the next title stands no better by cosine
(benchmarks/surfaces.py), and cosines of such vectors can be arbitrary (arXiv 2403.05440).
Ties: the higher score, then the smaller id. The context that a request brings has the question, and its canvas is the
surface's name unless it names one.
Shape letters: B members, N titles, K candidates, D vector width.
"""

from __future__ import annotations

import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..foundation.events import EventError, check_title_id
from ..foundation.schema import MAX_TEXT
from .search import TIERS
from .store import Store

HOMEPAGE = "homepage"
NEIGHBOURS = 100


@dataclass(frozen=True)
class Surface:
    """A surface of one row. row_id: below −1, so that no row of a rows.json has it. key: of the context, the question.
    source: of its titles. nothing: the fallback of a row without titles."""

    name: str
    row_id: int
    label: str
    key: str
    source: str
    nothing: str


SEARCH = Surface("search", -2, "Found", "query", "lexical", "no_match")
MORE_LIKE_THIS = Surface("more_like_this", -3, "More like {title}", "title_id", "neighbour", "nothing_left")
SURFACES = {s.name: s for s in (SEARCH, MORE_LIKE_THIS)}
NAMES = (HOMEPAGE, *SURFACES)


@dataclass(frozen=True)
class Question:
    """What is asked on a surface: the query of a search, or the title (its index) that others are like."""

    surface: Surface
    query: str = ""
    title: int = -1


def question(store: Store, name: str, context: dict[str, Any]) -> Question | None:
    """The question of a request on the surface of that name, None for the homepage. Takes it out of the context, and
    writes the canvas into it, if the model knows it. Raises EventError naming the key, the value and the fix."""
    surface = SURFACES.get(name)
    if surface is None:
        return None
    value = context.pop(surface.key, None)
    if value is None:
        raise EventError(f"context: {surface.key!r} is missing; a request on the surface {name!r} has it")
    canvas = store.schema.category("where.canvas")
    if canvas is not None and canvas.when == "request" and context.get("canvas") is None:
        # One that training never saw is left out: nobody asked for it, so it is no unknown value to report.
        known = name in store.bundle.vocabularies[canvas.name].values
        context.update({"canvas": name} if known else {})
    if surface is MORE_LIKE_THIS:
        title_id = check_title_id(value, "context: 'title_id'")
        index = int(store.title_indices(np.array([title_id]))[0])
        if index < 0:
            raise EventError(f"context: 'title_id' is {title_id}, which the catalogue of this bundle lacks")
        return Question(surface, title=index)
    if not isinstance(value, str):
        raise EventError(f"context: 'query' is {reprlib.repr(value)}; give a text")
    if len(value) > MAX_TEXT:
        raise EventError(f"context: 'query' has {len(value)} characters; give at most {MAX_TEXT}")
    return Question(surface, query=value)


@dataclass(frozen=True)
class Asked:
    """A question with what its candidates depend on. excluded: bool [N], titles that may not be among them. wanted:
    titles to show."""

    question: Question
    excluded: np.ndarray
    wanted: int


def propose(store: Store, asked: Sequence[Asked], k: int) -> tuple[np.ndarray, np.ndarray]:
    """Candidates of B requests: (title indices int64 [B, K], tiers int8 [B, K]), K <= k, −1 past the end of a list.
    Titles of a lower tier stand before others whatever their score."""
    near = iter(_neighbours(store, [a for a in asked if a.question.surface is MORE_LIKE_THIS]))
    found = []
    for a in asked:
        if a.question.surface is SEARCH:
            found.append(store.search.find(a.question.query, k, a.wanted, a.excluded))
        else:
            titles = next(near)[:k]
            found.append((titles, np.zeros(len(titles), np.int8)))
    width = max(1, *(len(titles) for titles, _ in found))
    titles, tiers = np.full((len(asked), width), -1, np.int64), np.zeros((len(asked), width), np.int8)
    for row, (some, of) in enumerate(found):
        titles[row, : len(some)], tiers[row, : len(some)] = some, of
    return titles, tiers


def _neighbours(store: Store, asked: Sequence[Asked]) -> list[np.ndarray]:
    """For each request the titles int64 nearest to its title, without itself and what is excluded."""
    if not asked:
        return []
    seeds = np.array([a.question.title for a in asked])
    near = store.nearest(store.bundle.vectors.numpy()[seeds], NEIGHBOURS + 1, [a.excluded for a in asked])
    found = []
    for a, titles in zip(asked, near, strict=True):
        titles = titles[(titles >= 0) & (titles != a.question.title)]
        found.append(titles[~a.excluded[titles]][:NEIGHBOURS])
    return found


def ranked(
    question: Question, order: np.ndarray, scores: np.ndarray, titles: np.ndarray, tiers: np.ndarray, wanted: int
) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
    """The row: (title indices int64, scores float32, what the answer's info says of it).

    order int64 [K] with scores: candidates best first, as `candidate_scoring` gives them. titles, tiers: [K], of
    `propose`.
    """
    tier_of: Mapping[int, int] = dict(zip(titles.tolist(), tiers.tolist(), strict=True))
    kept = order >= 0
    order, scores = order[kept], scores[kept]
    of = np.array([tier_of[t] for t in order.tolist()], np.int8)
    best = np.argsort(of, kind="stable")[:wanted]
    about: dict[str, Any] = {}
    if question.surface is SEARCH:
        about["matches"] = {name: int((of[best] == tier).sum()) for tier, name in enumerate(TIERS)}
    return order[best], scores[best], about
