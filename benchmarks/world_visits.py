"""Pages for visits to the simulated world by the product's own path, and what the visitors wanted.

Shape letters: P pages, Q moods, N titles.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from ..serving.homepage import HomepageEngine, Ranked
from ..serving.requests import PageRequest, Prepared
from ..serving.rows import RowSpec
from ..training.world import World
from ..training.world_choice import every_mood, look, mood_chances
from ..training.world_population import DAY, DEVICES, LOCALES, Visits

_CHUNK = 256


def world_rows(genres: Sequence[str]) -> list[RowSpec]:
    """The simulated world's own rows (training/world_pages.py) as a row catalogue."""
    rows = [
        RowSpec(1, "Popular now", "popularity >= 0.9"),
        RowSpec(2, "New releases", "year >= latest_year"),
        RowSpec(4, "Continue watching", "popularity >= 0", seen="only", min_titles=1),
        RowSpec(5, "Short watches", "minutes <= 30"),
        RowSpec(6, "Long films", "entity_type == 'movie' and minutes >= 100"),
        RowSpec(10, "Because you watched {title}", "similar_to_liked(1)"),
        RowSpec(11, "Because you watched {title}", "similar_to_liked(2)"),
    ]
    return [*rows, *(RowSpec(100 + i, genre, f"{genre!r} in genres") for i, genre in enumerate(genres))]


def visits_after(world: World, member_ids: np.ndarray) -> Visits:
    """The visits of some members on the log's last day, a day later: by who comes, when and on what, as real as those;
    and nothing that a model of the whole log was trained on is later than they are."""
    own = np.isin(world.visits.member, member_ids)
    visits = world.visits.take(np.flatnonzero((world.visits.time >= world.end - DAY) & own))
    return replace(visits, time=visits.time + DAY)


def chosen_freely(world: World, visits: Visits) -> np.ndarray:
    """Chance float64 [P, N] that a title is what the member would choose with all titles side by side."""
    count, titles = len(visits), len(world.titles)
    everything = np.broadcast_to(np.arange(titles), (count, 1, titles))
    memory, at = world.memory(visits), np.arange(count)
    views = look(world.titles, world.members, memory, at, visits, every_mood(count), everything)
    strength = views.weight[:, :, 0].astype(np.float64)
    share = strength / strength.sum(-1, keepdims=True)
    return (mood_chances(world.members, visits)[:, :, None] * share).sum(1)


def ranked_at(engine: HomepageEngine, world: World, visits: Visits) -> list[Ranked]:
    """What the engine ranks at visits, asked as a client would: by id and context, without what is not to be had."""
    requests = []
    for i in range(len(visits)):
        device, locale = DEVICES[visits.device[i]], LOCALES[visits.locale[i]]
        context = {"timestamp": int(visits.time[i]), "device": device, "locale": locale}
        away = ~world.titles.available[visits.locale[i]] | (world.titles.release > visits.time[i])
        requests.append(
            PageRequest(int(visits.member[i]), context=json.dumps(context).encode(), exclude=np.flatnonzero(away))
        )
    prepared = engine.prepare(requests, float(visits.time.max()))
    ready = [p for p in prepared if isinstance(p, Prepared)]
    assert len(ready) == len(requests), next(p for p in prepared if not isinstance(p, Prepared))
    found = []
    for chunk in chunks(len(ready)):
        vectors, states = engine.encode(ready[chunk])
        found += engine.rank(requests[chunk], ready[chunk], vectors, states)
    return found


def chunks(count: int) -> list[slice]:
    return [slice(begin, begin + _CHUNK) for begin in range(0, count, _CHUNK)]
