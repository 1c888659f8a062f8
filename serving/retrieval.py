"""About 1000 candidate titles for a member, blended from several sources; each candidate keeps its source.

Ranking a FAISS list by the dot product that made it would be no ranking, so the list is blended with collaborative
filtering, popularity, new titles and exploration.
Shape letters: B members, N titles, K candidates, D vector width.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from ..foundation.schema import SOURCES
from .rows import MemberView
from .store import Store

# Share of the list that each source may fill, in the order in which they claim a title. Before them come the titles
# that rows name to stand first (editorial); whatever is left over goes to the embedding, then to popularity.
QUOTAS = {
    "item_item": 0.2,
    "user_user": 0.15,
    "embedding": 0.4,
    "popular": 0.15,
    "new": 0.05,
    "explore": 0.05,
}
SOURCE_ID = {name: i for i, name in enumerate(SOURCES)}
ITEM_ITEM_SEEDS = 50


@dataclass(frozen=True)
class Member:
    """What the sources know of a member. index: in the store, −1 unknown; recent: title indices, newest last;
    excluded: bool [N], titles that may not be proposed; locale: encoded, 0 unknown; day: of the request, seeds
    exploration together with member_id."""

    member_id: int
    index: int
    recent: np.ndarray
    excluded: np.ndarray
    locale: int
    day: int


def retrieve(
    store: Store, member_vectors: np.ndarray | Tensor, members: list[Member], k: int
) -> tuple[np.ndarray, np.ndarray]:
    """Candidates of B members with vectors float32 [B, D], wherever they lie.

    Returns (title indices int64 [B, K], sources uint8 [B, K]), −1 and source `none` past the end of a list, with
    K = min(k, N). No title is excluded, proposed twice or out of range.
    """
    width = min(k, store.title_count)
    near = store.nearest(member_vectors, width, [m.excluded for m in members])
    titles = np.full((len(members), width), -1, np.int64)
    sources = np.zeros((len(members), width), np.uint8)
    for row, member in enumerate(members):
        _fill(store, member, near[row], titles[row], sources[row])
    return titles, sources


def _fill(store: Store, member: Member, near: np.ndarray, titles: np.ndarray, sources: np.ndarray) -> None:
    taken, width, filled = member.excluded.copy(), len(titles), 0
    most_taken = int(np.count_nonzero(taken))
    embedding = near[near >= 0]  # padded with −1
    popular = store.popular_by_locale.get(member.locale, store.popular)
    lists = {
        "editorial": store.editorial,
        "item_item": item_item(store, member.recent, round(QUOTAS["item_item"] * width) + len(member.recent)),
        "user_user": _known(store.user_user[member.index]) if member.index >= 0 else np.empty(0, np.int64),
        "embedding": embedding,
        "popular": popular,
        "new": store.newest,
        "explore": explore(store, member),
    }
    for name, quota in [
        ("editorial", width),
        *((n, round(q * width)) for n, q in QUOTAS.items()),
        ("embedding", width),
        ("popular", width),
    ]:
        wanted = min(quota, width - filled)
        proposed = lists[name][: wanted + most_taken + filled]  # so many hold `wanted` free ones, if the list has them
        proposed = proposed[~taken[proposed]][:wanted]
        taken[proposed] = True
        titles[filled : filled + len(proposed)] = proposed
        sources[filled : filled + len(proposed)] = SOURCE_ID[name]
        filled += len(proposed)


def item_item(store: Store, recent: np.ndarray, count: int) -> np.ndarray:
    """Titles by the summed similarity to the newest 50 of `recent`, best first, ties by smaller id."""
    seeds = recent[-ITEM_ITEM_SEEDS:]
    near, scores = store.item_item[seeds].ravel(), store.item_item_scores[seeds].ravel()
    found, which = np.unique(near[near >= 0], return_inverse=True)  # not an array of all titles: few are near
    total = np.bincount(which, weights=scores[near >= 0])
    best = np.argsort(-total, kind="stable")[:count]
    return found[best[total[best] != 0]].astype(np.int64)


def explore(store: Store, member: Member) -> np.ndarray:
    """Titles of the long tail, shuffled anew for each member and day."""
    draw = np.random.default_rng((member.member_id + 1, member.day))
    count = min(len(store.long_tail), 200)
    return draw.choice(store.long_tail, count, replace=False) if count else store.long_tail


def for_pinned_rows(store: Store, member: Member, view: MemberView, titles: np.ndarray) -> np.ndarray:
    """Titles that the member's candidates lack and pinned rows need to be full, most popular first: a row that an
    editor has pinned must not go missing because few of its titles suit the member. titles: int64 [K], −1 padded."""
    have, found = member.excluded.copy(), [np.empty(0, np.int64)]
    for spec, eligibility in zip(store.rows.specs, store.rows.eligibility, strict=True):
        if spec.pin is None or spec.seen == "only":
            continue
        fits = eligibility.mask(view)
        missing = spec.max_titles - int(fits[titles[titles >= 0]].sum())
        more = store.popular[(fits & ~have)[store.popular]]
        more = more[~np.isin(more, titles)][: max(0, missing)]
        have[more] = True
        found.append(more)
    return np.concatenate(found)


def _known(titles: np.ndarray) -> np.ndarray:
    return titles[titles >= 0]
