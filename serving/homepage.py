"""The whole homepage of a bundle in one process: encode → retrieve → score → rank rows → assemble. And the pages of one
row of other surfaces (surfaces.py), from the same encoding.

Every stage takes all members of a call at once; a member whose request is wrong gets an error of its own and the
others their pages.
Shape letters: B members, T tokens, C encoded columns (in a page: titles per row), K candidates, R rows, N titles,
M d_model, D vector width.
"""

from __future__ import annotations

import time
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..kernels.candidate_scoring import candidate_scoring
from .diversity import varied
from .page import RowWorth, assemble
from .requests import BadRequest, PageRequest, Prepared, RequestError, prepare
from .retrieval import SOURCE_ID, for_pinned_rows, retrieve
from .store import Store
from .surfaces import HOMEPAGE, MORE_LIKE_THIS, Asked, Question, propose, ranked

CANDIDATES = 1000
KEPT = 4096  # rankings of members, about 30 kB each


@dataclass(frozen=True)
class Page:
    """row_ids int64 [R], row_scores float32 [R] (probability that the next title is among the row's first, of those
    that no row above shows), title_ids int64 [R, C] (−1 past the end of a row), title_scores float32 [R, C], sources
    uint8 [R, C]."""

    row_ids: np.ndarray
    row_scores: np.ndarray
    title_ids: np.ndarray
    title_scores: np.ndarray
    sources: np.ndarray
    info: dict[str, Any]


@dataclass(frozen=True)
class Ranked:
    """A member's candidates, best first: titles int64 [K] (indices), scores float32 [K], sources uint8 [K]; fits uint8
    [R, ⌈K/8⌉], `eligible` as bits; worth: what rows of them are worth; level: the log normaliser of the scores
    (probability.py)."""

    titles: np.ndarray
    scores: np.ndarray
    sources: np.ndarray
    fits: np.ndarray
    worth: RowWorth
    level: float

    @property
    def eligible(self) -> np.ndarray:
        """bool [R, K]: which candidate may stand in which row."""
        return np.unpackbits(self.fits, axis=1, count=len(self.titles)).view(bool)


class HomepageEngine:
    """Answers page requests from a Store. `counters` has what was answered and what was not perfect, `stage_seconds`
    the time of each stage, that of whole batches.

    A ranking is kept: a member who asks again within the hour, in the same context and with nothing new, gets a page
    put together from the same candidates and scores, without any work of the transformer."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.counters: Counter[str] = Counter()
        self.stage_seconds: defaultdict[str, float] = defaultdict(float)
        self.bfloat16 = False  # see precision.py
        self._kept: OrderedDict[tuple[int, int, bytes], Ranked] = OrderedDict()  # the least recently used first

    def pages(self, requests: Sequence[PageRequest], now: float | None = None) -> list[Page | ValueError]:
        """A page, or the error to give back, for each request, in order."""
        clock = _Clock()
        prepared = self.prepare(requests, time.time() if now is None else now)
        good = [(r, p) for r, p in zip(requests, prepared, strict=True) if isinstance(p, Prepared)]
        clock.lap("prepare")
        made = iter(self._pages([r for r, _ in good], [p for _, p in good], clock) if good else ())
        answers = [next(made) if isinstance(p, Prepared) else p for p in prepared]
        self._count(answers)
        for stage, milliseconds in clock.laps.items():
            self.stage_seconds[stage] += milliseconds / 1000
        return answers

    def prepare(self, requests: Sequence[PageRequest], now: float) -> list[Prepared | ValueError]:
        """Each request checked, merged with what is stored and encoded; or the error to give back."""
        prepared: list[Prepared | ValueError] = []
        for request in requests:
            try:
                prepared.append(prepare(self.store, request, now))
            except BadRequest as error:
                prepared.append(error)
        return prepared

    def _pages(self, requests: list[PageRequest], prepared: list[Prepared], clock: _Clock) -> list[Page]:
        best = [self._kept_ranking(p) for p in prepared]
        new = [b for b, kept in enumerate(best) if kept is None]
        pages: dict[int, Page] = {}
        if new:
            vectors, states = self.encode([prepared[b] for b in new])
            clock.lap("encode")
            for of_surface in (False, True):
                at = [i for i, b in enumerate(new) if (prepared[b].question is not None) == of_surface]
                members = [requests[new[i]] for i in at], [prepared[new[i]] for i in at], _of(vectors, at)
                if at and of_surface:
                    pages |= zip((new[i] for i in at), self._one_row_pages(*members, clock), strict=True)
                elif at:
                    for i, ranked in zip(at, self.rank(*members, _of(states, at), clock), strict=True):
                        best[new[i]] = ranked
                        self._keep_ranking(prepared[new[i]], ranked)
        for b, ranked in enumerate(best):
            if ranked is not None:
                pages[b] = self._page(requests[b], prepared[b], ranked)
        clock.lap("assemble")
        for page in pages.values():
            page.info["stages_ms"] = clock.laps
        return [pages[b] for b in range(len(requests))]

    def _kept_ranking(self, p: Prepared) -> Ranked | None:
        kept = None if p.key is None else self._kept.get(p.key)
        if kept is not None and p.key is not None:
            self._kept.move_to_end(p.key)
            self.counters["ranking_kept"] += 1
        return kept

    def _keep_ranking(self, p: Prepared, ranked: Ranked) -> None:
        if p.key is not None:
            self._kept[p.key] = ranked
            if len(self._kept) > KEPT:
                self._kept.popitem(last=False)

    def _one_row_pages(
        self, requests: list[PageRequest], prepared: list[Prepared], vectors: Tensor, clock: _Clock
    ) -> list[Page]:
        store = self.store
        asked = [Asked(p.question, p.member.excluded, r.titles) for r, p in zip(requests, prepared, strict=True)
                 if p.question is not None]  # fmt: skip
        titles, tiers = propose(store, asked, CANDIDATES)
        for b, (a, p) in enumerate(zip(asked, prepared, strict=True)):
            if a.question.surface is MORE_LIKE_THIS and p.fallback is not None:
                vectors[b] = store.vectors[a.question.title]  # nothing is known of the member: similarity alone
        order, scores = self.score(vectors, titles, titles.shape[1])
        pages = []
        for b, (request, p, a) in enumerate(zip(requests, prepared, asked, strict=True)):
            best, of_best, about = ranked(a.question, order[b], scores[b], titles[b], tiers[b], request.titles)
            pages.append(self._one_row_page(request, p, a.question, best, of_best, about))
        clock.lap("surfaces")
        return pages

    def rank(
        self, requests: Sequence[PageRequest], prepared: Sequence[Prepared], vectors: Tensor, states: Tensor,
        clock: _Clock | None = None,
    ) -> list[Ranked]:  # fmt: skip
        """Candidates of members with vectors [B, D] and row states [B, M], scored, and the rows they may stand in."""
        store, clock = self.store, clock or _Clock()
        titles, sources = retrieve(store, vectors, [p.member for p in prepared], CANDIDATES)
        more = [for_pinned_rows(store, p.member, p.view, titles[b]) for b, p in enumerate(prepared)]
        titles, sources = _with_more(titles, sources, more, "popular")
        if any(spec.seen != "exclude" for spec in store.rows.specs):
            titles, sources = _with_more(titles, sources, [np.flatnonzero(p.seen) for p in prepared], "history")
        clock.lap("retrieve")
        order, scores = self.score(vectors, titles, titles.shape[1])
        levels = store.normaliser(vectors, [p.seen for p in prepared], order, scores).tolist()
        chances = torch.from_numpy(scores).softmax(1).numpy()  # of no candidate where there is none: score −inf
        shift, stretch, slope = store.blend
        bases = shift + stretch * self.row_logits(states)
        clock.lap("score")
        found = []
        for b, (request, p) in enumerate(zip(requests, prepared, strict=True)):
            there = order[b] >= 0
            best, worth = order[b][there], RowWorth(bases[b], slope, chances[b][there])
            source_of = np.zeros(store.title_count, np.uint8)
            source_of[titles[b][titles[b] >= 0]] = sources[b][titles[b] >= 0]
            eligible = self._eligible(request, p, best)
            fits = np.packbits(eligible, axis=1)
            found.append(Ranked(best, scores[b][there], source_of[best], fits, worth, levels[b]))
        return found

    def _eligible(self, request: PageRequest, p: Prepared, titles: np.ndarray) -> np.ndarray:
        """bool [R, K]: which of titles int64 [K] (indices) may stand in which row."""
        eligible = self.store.rows.masks(p.view, titles, p.seen[titles])
        if len(request.exclude):
            eligible &= ~np.isin(self.store.bundle.titles.ids[titles], request.exclude)
        return eligible

    @torch.inference_mode()
    def encode(self, prepared: Sequence[Prepared]) -> tuple[Tensor, Tensor]:
        """Member vectors [B, D] and row states [B, M]."""
        graphs = self.store.graphs
        if graphs is not None and (found := graphs.encode([p.tokens for p in prepared])):
            return found
        tokens = torch.from_numpy(np.concatenate([p.tokens for p in prepared])).to(self.store.device)
        lengths = [0, *(len(p.tokens) for p in prepared)]
        offsets = torch.tensor(np.cumsum(lengths), device=self.store.device)
        with torch.autocast(self.store.device.type, torch.bfloat16, enabled=self.bfloat16):
            vectors, states = self.store.model.encode(tokens, offsets)
        return vectors.float(), states.float()

    @torch.inference_mode()
    def score(self, vectors: Tensor, titles: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Title indices int64 [B, k] best first (−1 past the end) and scores float32 [B, k] of candidates [B, K]."""
        graphs = self.store.graphs
        if graphs is not None and (found := graphs.score(vectors, titles)):
            return found[0][:, :k], found[1][:, :k]
        candidates = torch.from_numpy(titles).to(vectors.device)
        indices, scores = candidate_scoring(vectors, self.store.vectors, candidates, k)
        return indices.cpu().numpy(), scores.cpu().numpy()

    @torch.inference_mode()
    def row_logits(self, states: Tensor) -> np.ndarray:
        """Logits float32 [B, R] of each row of the catalogue, from states [B, M] alone."""
        if self.store.graphs is not None:
            return self.store.graphs.row_logits(states)
        return self.store.row_ranker(states, self.store.row_vectors, self.store.row_biases).float().cpu().numpy()

    def _page(self, request: PageRequest, p: Prepared, best: Ranked) -> Page:
        rows, title_ids = self.store.rows, self.store.bundle.titles.ids[best.titles]
        units = self.store.unit_vectors
        fill = varied(best.scores, units[best.titles], rows.diversity) if rows.diversity else None
        placed = assemble(rows.specs, best.worth, best.eligible, title_ids, request.rows, request.titles, fill)
        at = np.full((len(placed), request.titles), -1, np.int64)
        for row, of in enumerate(placed):
            at[row, : len(of.places)] = of.places
        there = at >= 0
        return Page(
            row_ids=rows.ids[[r.row for r in placed]],
            row_scores=_sigmoid(np.array([r.score for r in placed])),
            title_ids=_those(title_ids, at, there, -1),
            title_scores=_those(best.scores, at, there, 0),
            sources=_those(best.sources, at, there, 0),
            info=self._info(request, p, [r.row for r in placed])
            | {"title_log_normaliser": best.level if np.isfinite(best.level) else None},
        )

    def _one_row_page(
        self, request: PageRequest, p: Prepared, question: Question, titles: np.ndarray, scores: np.ndarray,
        about: dict[str, Any],
    ) -> Page:  # fmt: skip
        surface, ids = question.surface, self.store.bundle.titles.ids
        page = Page(
            row_ids=np.array([surface.row_id], np.int64),
            row_scores=np.zeros(1, np.float32),
            title_ids=np.full((1, request.titles), -1, np.int64),
            title_scores=np.zeros((1, request.titles), np.float32),
            sources=np.zeros((1, request.titles), np.uint8),
            info=self._info(request, p, []) | {"fallback": p.fallback if len(titles) else surface.nothing, **about},
        )
        page.title_ids[0, : len(titles)] = ids[titles]
        page.title_scores[0, : len(titles)] = scores
        page.sources[0, : len(titles)] = SOURCE_ID[surface.source]
        if question.title >= 0:
            page.info["row_titles"] = {str(surface.row_id): int(ids[question.title])}
        return page

    def _info(self, request: PageRequest, p: Prepared, shown: list[int]) -> dict[str, Any]:
        rows, ids = self.store.rows, self.store.bundle.titles.ids
        seeds = {int(rows.ids[r]): int(ids[t]) for r, t in rows.seeds(p.view).items() if r in shown}
        return {
            "bundle_version": self.store.version,
            "bundle_fingerprint": self.store.bundle.fingerprint,
            "schema_hash": self.store.schema.hash,
            "fallback": p.fallback if shown else "nothing_left",
            "surface": request.surface,
            "experiment": request.experiment,
            "row_titles": {str(r): t for r, t in seeds.items()},
            "pinned": [rows.specs[r].row_id for r in shown if rows.specs[r].pin is not None],
            "counts": p.counts.numbers(),
            "unknown": p.counts.unknown,
        }

    def _count(self, answers: Sequence[Page | ValueError]) -> None:
        for answer in answers:
            if isinstance(answer, ValueError):
                self.counters["refused"] += 1
                continue
            self.counters["pages"] += 1
            if (surface := answer.info["surface"]) != HOMEPAGE:
                self.counters[f"surface_{surface}"] += 1
            if fallback := answer.info["fallback"]:
                self.counters[f"fallback_{fallback}"] += 1
            self.counters.update(answer.info["counts"])

    # The stages alone, one member at a time, for callers that put them together in another way.

    def candidates(
        self, member_vector: np.ndarray, member_id: int, k: int, exclude: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """(title ids int64 [K], sources uint8 [K]) for a vector float32 [D], K <= k. Raises RequestError."""
        vector = self._vector("member_vector", member_vector, self.store.vectors.shape[1])
        if k < 1:
            raise RequestError(f"k is {k}; it must be at least 1")
        request = PageRequest(member_id, exclude=exclude)
        prepared = prepare(self.store, request, time.time())
        titles, sources = retrieve(self.store, vector[None], [prepared.member], k)
        kept = titles[0] >= 0
        return self.store.bundle.titles.ids[titles[0][kept]], sources[0][kept]

    def score_titles(self, member_vector: np.ndarray, title_ids: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """(title ids int64 [K], scores float32 [K]) of the best k, best first, K = min(k, titles given) and at least 1;
        titles that the catalogue lacks stand at the end as −1 with score −inf. Raises RequestError."""
        vector = self._vector("member_vector", member_vector, self.store.vectors.shape[1])
        if k < 1:
            raise RequestError(f"k is {k}; it must be at least 1")
        order, scores = self.score(
            torch.from_numpy(vector[None]).to(self.store.device),
            self.store.title_indices(title_ids)[None],
            min(k, max(1, len(title_ids))),  # a caller's k is no reason to fill memory with padding
        )
        ids = self.store.bundle.titles.ids[order[0]]
        return np.where(order[0] >= 0, ids, -1), scores[0]

    def row_probabilities(self, row_state: np.ndarray, row_ids: np.ndarray) -> np.ndarray:
        """Probability float32 [R] of the rows with ids int64 [R], from a state float32 [M] alone: a page also knows the
        titles that a row would show. Raises RequestError."""
        state = self._vector("row_state", row_state, self.store.model.config.d_model)
        known = {row_id: i for i, row_id in enumerate(self.store.rows.ids.tolist())}
        if strange := [r for r in row_ids.tolist() if r not in known]:
            raise RequestError(f"row_ids has {strange}; this bundle has {sorted(known)}")
        scores = _sigmoid(self.row_logits(torch.from_numpy(state[None]).to(self.store.device))[0])
        return scores[[known[r] for r in row_ids.tolist()]]

    @staticmethod
    def _vector(name: str, values: np.ndarray, width: int) -> np.ndarray:
        if values.shape != (width,):
            raise RequestError(f"{name} has {values.size} values; this bundle's has {width}")
        if not np.isfinite(values).all():
            raise RequestError(f"{name} has values that are not finite")
        return np.array(values, np.float32)


class _Clock:
    """Milliseconds of each stage of a call; a stage's time is that of the whole batch."""

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.laps[name] = round((now - self._last) * 1000, 3)
        self._last = now


def _of(values: Tensor, at: list[int]) -> Tensor:
    """A copy of values [B, …] at the places; if these are all, a GPU is not waited for."""
    return values.clone() if len(at) == len(values) else values[at]


def _sigmoid(logits: np.ndarray) -> np.ndarray:
    """float32 of the same shape."""
    return torch.from_numpy(logits).sigmoid().float().numpy()


def _those(values: np.ndarray, at: np.ndarray, there: np.ndarray, nothing: int) -> np.ndarray:
    """values [K] at the places [R, C] that are there, `nothing` elsewhere."""
    found = np.full(at.shape, nothing, values.dtype)
    found[there] = values[at[there]]
    return found


def _with_more(
    titles: np.ndarray, sources: np.ndarray, more: Sequence[np.ndarray], source: str
) -> tuple[np.ndarray, np.ndarray]:
    """Candidates [B, K] with more titles of one source behind those of each member."""
    behind = np.full((len(more), max(map(len, more), default=0)), -1, np.int64)
    for row, found in enumerate(more):
        behind[row, : len(found)] = found
    from_source = np.where(behind >= 0, SOURCE_ID[source], 0).astype(np.uint8)
    return np.concatenate([titles, behind], axis=1), np.concatenate([sources, from_source], axis=1)
