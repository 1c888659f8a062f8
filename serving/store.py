"""A bundle in memory, ready to be asked: model, vectors, FAISS index, member histories, row catalogue.

Shape letters: B members, T events, N titles, R rows, D vector width.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import faiss
import numpy as np
import torch
from torch import Tensor

from ..foundation.bundle import MANIFEST, Bundle, BundleError, load_bundle
from ..foundation.encoding import Encoded
from ..foundation.row_ranker import RowRanker
from ..foundation.schema import FIRST
from .diversity import unit_vectors
from .graphs import Graphs
from .probability import Normaliser
from .rows import MemberView, RowCatalogue, RowError, TitleColumns
from .search import TitleSearch

LIKED_KEPT = 10
# From so many members on, a matrix product over all titles is quicker than a scan for each; FAISS waits for 20.
faiss.cvar.distance_compute_blas_threshold = 6


class Store:
    """Everything a request needs, of one bundle version. Raises BundleError if the bundle is not whole."""

    def __init__(self, bundle: Bundle, device: torch.device | None = None) -> None:
        self.bundle = bundle
        self.schema = bundle.schema
        self.version = bundle.version
        self.device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.model = bundle.build_model().to(self.device)
        self.model.events.fold()
        self.vectors = bundle.vectors.to(self.device)
        self.normaliser = Normaliser(self.vectors)
        self.title_count = len(bundle.titles)
        self.popularity = bundle.candidates["popularity"].numpy()
        self.item_item = bundle.candidates["item_item"].numpy()
        self.item_item_scores = bundle.candidates["item_item_scores"].numpy()
        self.user_user = bundle.candidates["user_user"].numpy()
        self.columns = TitleColumns.from_metadata(self.title_count, bundle.titles.metadata, self.popularity)
        try:
            self.rows = RowCatalogue(bundle.rows, self.columns)
        except RowError as error:
            raise BundleError(f"{bundle.path / 'rows.json'}: {error}") from error
        self.row_features = row_features(self.rows, self.columns, bundle.vectors)
        self._load_row_ranker()
        self.graphs = Graphs(self) if self.device.type == "cuda" else None

    @classmethod
    def open(cls, path: Path, device: torch.device | None = None) -> Store:
        """Verify a bundle directory and load it."""
        return cls(load_bundle(path), device)

    def _load_row_ranker(self) -> None:
        weights, file = dict(self.bundle.row_ranker), self.bundle.path / "row_ranker.safetensors"
        try:
            width = weights["embedding"].shape[1]
            ranker = RowRanker(weights["row_ids"], self.model.config.d_model, self.schema.id_field.width, width)
            ranker.load_state_dict(weights)
            self.blend: list[float] = ranker.blend.tolist()
        except (IndexError, KeyError, RuntimeError, TypeError) as error:
            raise BundleError(f"{file} does not fit the model: {error}") from error
        self.row_ranker = ranker.to(self.device).eval()
        with torch.no_grad():
            ids = torch.from_numpy(self.rows.ids).to(self.device)
            self.row_vectors, self.row_biases = self.row_ranker.row_vectors(ids, self.row_features.to(self.device))

    @cached_property
    def index(self) -> faiss.Index:
        """FAISS index over the title vectors, rebuilt from them: foreign index files are not safe to read."""
        factory = str(self.bundle.manifest.get("index", "Flat"))
        vectors = self.bundle.vectors.numpy()
        try:
            index = self._empty_index(factory)
            index.train(vectors)
            index.add(vectors)
        except RuntimeError as error:
            file = self.bundle.path / MANIFEST
            raise BundleError(f"{file}: FAISS makes no index {factory!r} of {len(vectors)} titles: {error}") from error
        return index

    def _empty_index(self, factory: str) -> faiss.Index:
        return faiss.index_factory(self.vectors.shape[1], factory, faiss.METRIC_INNER_PRODUCT)

    @cached_property
    def looks_at_all(self) -> bool:
        """Whether the index looks at every title, so that any search of them all finds the same."""
        empty = self._empty_index(str(self.bundle.manifest.get("index", "Flat")))
        return isinstance(empty, faiss.IndexFlat | faiss.IndexScalarQuantizer)

    def nearest(self, vectors: np.ndarray | Tensor, k: int, excluded: Sequence[np.ndarray] | None = None) -> np.ndarray:
        """Titles of highest dot product with each of vectors float32 [B, D], best first: indices int64 [B, ≥ k], −1
        past the end. excluded: bool [N] of each, titles that do not count; they may be among the answers, of which so
        many more come that k others are there, as far as there are. From the FAISS index; on a GPU, if that looks at
        all titles, by catalogue_search there."""
        if self.graphs is not None and self.graphs.finds(k):
            return self.graphs.nearest(vectors, excluded)
        k = min(self.title_count, k + max((int(np.count_nonzero(e)) for e in excluded or ()), default=0))
        return self.index.search(torch.as_tensor(vectors).cpu().numpy(), k)[1]

    @cached_property
    def unit_vectors(self) -> np.ndarray:
        """float32 [N, D]: the title vectors, of length 1."""
        return unit_vectors(self.bundle.vectors.numpy())

    @cached_property
    def popular(self) -> np.ndarray:
        """Title indices int64 [N], most popular first, ties by smaller id."""
        return np.lexsort((np.arange(self.title_count), -self.popularity))

    @cached_property
    def search(self) -> TitleSearch:
        """Titles by what somebody types; made in about 3 s for 100,000 titles."""
        return TitleSearch(self.bundle.titles.names, self.popular)

    @cached_property
    def popular_by_locale(self) -> dict[int, np.ndarray]:
        """As `popular`, by encoded locale, for locales with at least 1,000 stored events."""
        if self.locale_column is None:
            return {}
        ids = self.bundle.histories.ids
        locale = ids[:, self.locale_column]
        titles = ids[:, self.title_column] - FIRST
        found = {}
        for value in np.unique(locale[locale >= FIRST]).tolist():
            here = titles[(locale == value) & (titles >= 0)]
            if len(here) >= 1000:
                plays = np.bincount(here, minlength=self.title_count)
                found[value] = np.lexsort((np.arange(self.title_count), -plays))
        return found

    @cached_property
    def newest(self) -> np.ndarray:
        """Title indices of the latest two years, newest first, then the most popular."""
        years = self.columns.numbers.get("year")
        if years is None:
            return np.empty(0, np.int64)
        order = np.lexsort((-self.popularity, -np.nan_to_num(years, nan=-np.inf)))
        return order[years[order] >= np.nanmax(years) - 1]

    @cached_property
    def editorial(self) -> np.ndarray:
        """Title indices that some row names to stand first, which are candidates for everybody."""
        named = sorted({title for spec in self.rows.specs for title in spec.first})
        index = self.title_indices(np.array(named, np.int64))
        return index[index >= 0]

    @cached_property
    def long_tail(self) -> np.ndarray:
        """Title indices of the less popular half that have been played at all."""
        half = self.popular[self.title_count // 2 :]
        return half[self.popularity[half] > 0]

    @property
    def title_column(self) -> int:
        """The column of encoded events that holds the title."""
        return self.schema.spans[self.schema.id_field.name][0]

    @cached_property
    def locale_column(self) -> int | None:
        """The column of encoded events that holds the locale; None if the schema has none."""
        field = self.schema.category("where.locale")
        return self.schema.spans[field.name][0] if field else None

    def history(self, member_id: int) -> tuple[int, Encoded | None]:
        """(member index, stored history), or (−1, None) for a member the bundle does not know."""
        ids = self.bundle.member_ids
        at = int(np.searchsorted(ids, member_id))
        if at == len(ids) or ids[at] != member_id:
            return -1, None
        return at, self.bundle.histories.member(at)

    @cached_property
    def _likes(self) -> tuple[int, np.ndarray] | None:
        """Column of the action type, and by encoded action type whether it makes a title liked; None if the schema has
        no action type."""
        field = self.schema.category("what.action_type")
        if field is None:
            return None
        liked = [v in self.rows.liked_actions for v in self.bundle.vocabularies[field.name].values]
        return self.schema.spans[field.name][0], np.array([True, False, *liked])

    def member_view(self, ids: np.ndarray) -> MemberView:
        """What row expressions may ask, of a history of encoded events int32 [T, C]."""
        titles = ids[:, self.title_column].astype(np.int64) - FIRST
        if self._likes is not None:
            column, liked = self._likes
            titles = titles[liked[ids[:, column]]]
        newest_first = titles[titles >= 0][::-1][: 4 * LIKED_KEPT].tolist()
        return MemberView(len(ids), list(dict.fromkeys(newest_first))[:LIKED_KEPT], self.neighbours)

    def neighbours(self, title: int) -> np.ndarray:
        """Title indices near a title by item-item similarity, nearest first."""
        near = self.item_item[title]
        return near[near >= 0]

    def title_indices(self, title_ids: np.ndarray) -> np.ndarray:
        """Index int64 of title ids int64; −1 where the catalogue lacks one."""
        ids = self.bundle.titles.ids
        at = np.minimum(np.searchsorted(ids, title_ids), len(ids) - 1)
        return np.where(ids[at] == title_ids, at, -1)


def row_features(rows: RowCatalogue, columns: TitleColumns, vectors: Tensor) -> Tensor:
    """Content of each row, float32 [R, D + ROW_STATISTICS]: mean title vector, log size, mean popularity percentile,
    and 1 for a row whose titles depend on the member (whose content is then zeros)."""
    masks = torch.from_numpy(rows.static).float()
    size = masks.sum(1, keepdim=True)
    share = size.clamp(min=1)
    popularity = torch.from_numpy(columns.numbers["popularity"]).float()
    dynamic = torch.zeros(len(rows), 1)
    dynamic[rows.dynamic] = 1.0
    return torch.cat([masks @ vectors / share, size.log1p(), masks @ popularity[:, None] / share, dynamic], dim=1)
