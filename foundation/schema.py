"""The one place where event fields, their vocabularies and the wire contract are declared.

numpy and the standard library only: the client imports this file and installs without torch.

Encoded ids, the same for every field: 0 absent (or padding), 1 unknown (out of vocabulary), 2 + i the i-th value.
Shape letters: T events, C encoded columns (one per field, several for a multi-valued one), N titles.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

ABSENT, UNKNOWN, FIRST = 0, 1, 2

Kind = Literal["id", "category", "categories", "number", "hour", "weekday", "gap"]
When = Literal["request", "action"]


# Beyond these no embedding table fits a host.
_WIDEST, _MOST_SLOTS = 65_536, 1_024


class SchemaError(ValueError):
    """A schema, or something checked against one, is wrong; the message names the field and the fix."""


@dataclass(frozen=True)
class Field:
    """One key of an event or of a title.

    path: where its value is found. `timestamp`, `what.*` and `where.*` are keys of the event JSON, a dot for each
        object on the way (`where.geo.region`); `title.*` is metadata of the title that the event is about.
    kind: `id` (int64 title id), `category` (one string), `categories` (a list of strings, mean-pooled),
        `number` (bucketed by `edges`); of the event's time: `hour` and `weekday` (UTC), `gap` (seconds since the
        member's previous event, bucketed by `edges`).
    when: `request` if it is known before the member acts (time, device, canvas), `action` if only afterwards.
    width: of its embedding. slots: how many values of a `categories` field are kept.
    loss_weight: 0 if the model does not predict the field.
    """

    name: str
    path: str
    kind: Kind
    when: When
    width: int
    slots: int = 1
    edges: tuple[float, ...] = ()
    loss_weight: float = 0.0

    def __post_init__(self) -> None:
        for key in ("name", "path"):
            if not isinstance(text := getattr(self, key), str) or not all(text.split(".")):
                raise SchemaError(f"field {self.name!r}: {key} {text!r} must be a text, and no part of it empty")
        if not isinstance(self.edges, list | tuple) or not all(map(is_number, self.edges)):
            raise SchemaError(f"field {self.name!r}: edges {self.edges!r} must be a list of numbers")
        object.__setattr__(self, "edges", tuple(float(e) for e in self.edges))
        for key, most in (("width", _WIDEST), ("slots", _MOST_SLOTS)):
            number = getattr(self, key)
            if not isinstance(number, int) or isinstance(number, bool) or not 1 <= number <= most:
                raise SchemaError(f"field {self.name!r}: {key} {number!r} must be an integer from 1 to {most}")
        if not is_number(self.loss_weight) or self.loss_weight < 0:
            raise SchemaError(f"field {self.name!r}: loss_weight {self.loss_weight!r} must be a number from 0")
        if self.kind not in get_args(Kind):
            raise SchemaError(f"field {self.name!r}: kind {self.kind!r} is not one of {', '.join(get_args(Kind))}")
        if self.when not in get_args(When):
            raise SchemaError(f"field {self.name!r}: when {self.when!r} is neither 'request' nor 'action'")
        if self.slots > 1 and self.kind != "categories":
            raise SchemaError(f"field {self.name!r}: only a 'categories' field has more than one slot")
        if (self.kind in ("number", "gap")) != bool(self.edges):
            raise SchemaError(f"field {self.name!r}: 'number' and 'gap' need edges, other kinds take none")
        if any(b <= a for a, b in pairwise(self.edges)):
            raise SchemaError(f"field {self.name!r}: edges must rise, got {list(self.edges)}")
        if self.loss_weight and self.when == "request":
            raise SchemaError(f"field {self.name!r}: a request-time field is an input and cannot be predicted")

    @property
    def has_vocabulary(self) -> bool:
        """Whether its values are learnt from data rather than fixed by its kind."""
        return self.kind in ("id", "category", "categories")

    def fixed_size(self) -> int:
        """Rows of the embedding table of a field without vocabulary."""
        return FIRST + {"hour": 24, "weekday": 7}.get(self.kind, len(self.edges) + 1)


def is_number(value: Any) -> bool:
    """Whether a value is a number that float64 can hold."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


@dataclass(frozen=True)
class Schema:
    """The fields of an event, in column order, and of a title.

    Exactly one event field has kind `id`: the title. Several may read one path, if kind and slots are the same. A
    title field shares its vocabulary with the event field of its path, if there is one. Raises SchemaError naming the
    field that is wrong.
    """

    fields: tuple[Field, ...]
    title_fields: tuple[Field, ...]

    def __post_init__(self) -> None:
        names = [f.name for f in self.fields]
        if doubled := sorted({n for n in names if names.count(n) > 1}):
            raise SchemaError(f"field names must differ; more than once: {doubled}")
        if [f.kind for f in self.fields].count("id") != 1:
            raise SchemaError("a schema needs exactly one field of kind 'id' (the title)")
        if not self.id_field.loss_weight:
            raise SchemaError(f"field {self.id_field.name!r}: the title must be predicted, give a loss_weight above 0")
        titles = {f.path: f for f in self.title_fields}
        named = {f.name: f for f in self.title_fields}
        if len(titles) != len(self.title_fields) or len(named) != len(self.title_fields):
            raise SchemaError(f"title fields must differ in name and path: {[f.name for f in self.title_fields]}")
        first = {f.path: f for f in reversed(self.fields) if f.path != "timestamp"}
        for f in self.fields:
            if f.path in first and (f.kind, f.slots) != (first[f.path].kind, first[f.path].slots):
                raise SchemaError(f"field {f.name!r}: {first[f.path].name!r} reads {f.path!r} too; one path, one kind")
            if inner := next((p for p in first if p.startswith(f"{f.path}.")), None):
                raise SchemaError(f"field {f.name!r}: {f.path!r} cannot be a value and hold {inner!r}")
            if f.name in named and f.path != named[f.name].path:
                raise SchemaError(f"field {f.name!r}: a title field has this name and another path; rename one")
            if f.path.startswith("title."):
                if f.when == "request":
                    raise SchemaError(f"field {f.name!r}: metadata of the title is known only after the action")
                if f.path not in titles:
                    raise SchemaError(f"field {f.name!r}: no title field has the path {f.path!r}")
                if (f.kind, f.slots) != (titles[f.path].kind, titles[f.path].slots):
                    raise SchemaError(f"field {f.name!r}: kind and slots must equal those of title field {f.path!r}")
            elif f.kind in ("hour", "weekday", "gap"):
                if f.path != "timestamp":
                    raise SchemaError(f"field {f.name!r}: kind {f.kind!r} reads 'timestamp', not {f.path!r}")
            elif not f.path.startswith(("what.", "where.")) or f.path == "where.timestamp":
                raise SchemaError(f"field {f.name!r}: path {f.path!r} must start with what., where. or title.; the "
                                  "time is 'timestamp'")  # fmt: skip
        for f in self.title_fields:
            if not f.path.startswith("title.") or f.kind not in ("category", "categories", "number"):
                raise SchemaError(f"title field {f.name!r}: path must start with title., kind be a value's")

    def __repr__(self) -> str:
        return f"Schema({len(self.fields)} fields, hash {self.hash[:12]})"

    def category(self, path: str) -> Field | None:
        """The first event field of kind `category` that reads `path`, if there is one."""
        return next((f for f in self.fields if f.path == path and f.kind == "category"), None)

    @cached_property
    def id_field(self) -> Field:
        return next(f for f in self.fields if f.kind == "id")

    @cached_property
    def spans(self) -> dict[str, tuple[int, int]]:
        """Columns [start, stop) of each event field in an encoded [T, C] array."""
        return _spans(self.fields)

    @cached_property
    def title_spans(self) -> dict[str, tuple[int, int]]:
        """Columns [start, stop) of each title field in the encoded [N, C] metadata."""
        return _spans(self.title_fields)

    @property
    def width(self) -> int:
        """C: encoded columns of an event."""
        return sum(f.slots for f in self.fields)

    @cached_property
    def request_columns(self) -> np.ndarray:
        """Columns of fields known at request time, int64."""
        return np.array([c for f in self.fields if f.when == "request" for c in range(*self.spans[f.name])], np.int64)

    @cached_property
    def action_columns(self) -> np.ndarray:
        """Columns of fields known only after the action, int64."""
        return np.array([c for f in self.fields if f.when == "action" for c in range(*self.spans[f.name])], np.int64)

    def to_dict(self) -> dict[str, Any]:
        return {
            "fields": [asdict(f) for f in self.fields],
            "title_fields": [asdict(f) for f in self.title_fields],
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Schema:
        """Raises SchemaError for a missing or unknown key, or a field that is wrong."""
        try:
            if strange := set(data) - {"fields", "title_fields"}:
                raise SchemaError(f"not a schema: it has {sorted(strange)}; known keys are 'fields' and 'title_fields'")
            return cls(
                tuple(Field(**f) for f in data["fields"]),
                tuple(Field(**f) for f in data.get("title_fields", ())),
            )
        except (AttributeError, KeyError, TypeError) as error:
            raise SchemaError(f"not a schema: {error}") from error

    @classmethod
    def load(cls, path: Path) -> Schema:
        """Read a schema from a JSON file in the shape of `to_dict`."""
        try:
            return cls.from_dict(json.loads(path.read_text("utf-8")))
        except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
            raise SchemaError(f"{path} is not JSON: {error}") from error
        except SchemaError as error:
            raise SchemaError(f"{path}: {error}") from error

    @cached_property
    def hash(self) -> str:
        """sha256 of the declared fields and the wire contract; learnt vocabularies are not part of it."""
        text = json.dumps([self.to_dict(), wire_dict()], sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()


def _spans(fields: Sequence[Field]) -> dict[str, tuple[int, int]]:
    spans, start = {}, 0
    for f in fields:
        spans[f.name] = (start, start + f.slots)
        start += f.slots
    return spans


def default_schema() -> Schema:
    """The fields of a streaming service. Data that lacks some of them leaves those absent, which must work."""
    minutes = (30, 60, 120, 300, 600, 1200, 1800, 2700, 3600, 5400, 7200, 10800)
    gaps = (
        1, 5, 15, 30, 60, 120, 300, 900, 3600, 6 * 3600, 86400, 3 * 86400, 7 * 86400, 30 * 86400, 180 * 86400,
    )  # fmt: skip
    return Schema(
        fields=(
            Field("action_type", "what.action_type", "category", "action", 16, loss_weight=0.1),
            Field("entity_id", "what.entity_id", "id", "action", 64, loss_weight=1.0),
            Field("entity_type", "what.entity_type", "category", "action", 8, loss_weight=0.05),
            Field(
                "duration",
                "what.duration_watched_seconds",
                "number",
                "action",
                8,
                edges=minutes,
                loss_weight=0.1,
            ),
            Field("genres", "title.genres", "categories", "action", 16, slots=6, loss_weight=0.1),
            Field("device", "where.device", "category", "request", 8),
            Field("canvas", "where.canvas", "category", "request", 8),
            Field("locale", "where.locale", "category", "request", 8),
            Field("hour", "timestamp", "hour", "request", 8),
            Field("weekday", "timestamp", "weekday", "request", 8),
            Field("gap", "timestamp", "gap", "request", 16, edges=gaps),
        ),
        title_fields=(
            Field("genres", "title.genres", "categories", "action", 16, slots=6),
            Field("year", "title.year", "number", "action", 16, edges=tuple(range(1930, 2031, 5))),
        ),
    )


class Vocabulary:
    """The known values of one field: value i has id FIRST + i; anything else is UNKNOWN, None is ABSENT.

    Title ids are kept sorted, so that index order is id order and ties break alike everywhere.
    """

    def __init__(self, values: Iterable[str] | Iterable[int]) -> None:
        self.values: list[Any] = list(values)
        self._ids = {v: FIRST + i for i, v in enumerate(self.values)}
        if len(self._ids) != len(self.values):
            raise SchemaError("a vocabulary lists each value once")
        self.sorted_ints: np.ndarray | None = None
        if self.values and all(isinstance(v, int) for v in self.values):
            self.sorted_ints = np.array(self.values, np.int64)
            if (np.diff(self.sorted_ints) <= 0).any():
                raise SchemaError("a vocabulary of title ids must be sorted")

    def __len__(self) -> int:
        return len(self.values)

    @property
    def size(self) -> int:
        """Rows of an embedding table for it."""
        return FIRST + len(self.values)

    def encode_coded(self, codes: np.ndarray, values: Sequence[str]) -> np.ndarray:
        """Ids int32 of dictionary-coded values: `codes` int [...] into `values`, −1 absent."""
        lookup = np.array([self._ids.get(v, UNKNOWN) for v in values] + [ABSENT], np.int32)
        return lookup[codes]

    def encode_ints(self, values: np.ndarray) -> np.ndarray:
        """Ids int32 [T] of int64 values [T]; a negative value is absent."""
        if self.sorted_ints is None:
            return np.where(values < 0, ABSENT, UNKNOWN).astype(np.int32)
        at = np.searchsorted(self.sorted_ints, values)
        found = self.sorted_ints[np.minimum(at, len(self.values) - 1)] == values
        return np.where(found, at + FIRST, np.where(values < 0, ABSENT, UNKNOWN)).astype(np.int32)


@dataclass(frozen=True)
class Tensor:
    """One input or output of a served model, without the batch dimension; −1 is a length that varies."""

    name: str
    dtype: Literal["INT64", "INT32", "FP32", "UINT8", "BYTES"]
    dims: tuple[int, ...]
    optional: bool = False


_PERSONAL = (
    Tensor("member_id", "INT64", (1,)),
    Tensor("events", "BYTES", (-1,), optional=True),
    Tensor("context", "BYTES", (-1,), optional=True),
)

# The names, dtypes and shapes are the API. config.pbtxt files and the client are tested against this table.
WIRE: dict[str, tuple[tuple[Tensor, ...], tuple[Tensor, ...]]] = {
    "homepage": (
        (
            *_PERSONAL,
            Tensor("page", "INT32", (-1,), optional=True),
            Tensor("exclude", "INT64", (-1,), optional=True),
            Tensor("surface", "BYTES", (-1,), optional=True),
            Tensor("experiment", "BYTES", (-1,), optional=True),
        ),
        (
            Tensor("row_ids", "INT64", (-1,)),
            Tensor("row_scores", "FP32", (-1,)),
            Tensor("title_ids", "INT64", (-1, -1)),
            Tensor("title_scores", "FP32", (-1, -1)),
            Tensor("sources", "UINT8", (-1, -1)),
            Tensor("info", "BYTES", (1,)),
        ),
    ),
    "catalogue": (
        (Tensor("title_offset", "INT64", (1,)),),
        (
            Tensor("title_ids", "INT64", (-1,)),
            Tensor("title_names", "BYTES", (-1,)),
            Tensor("info", "BYTES", (1,)),
        ),
    ),
    "foundation_model": (
        _PERSONAL,
        (Tensor("member_vector", "FP32", (-1,)), Tensor("row_state", "FP32", (-1,))),
    ),
    "candidate_retrieval": (
        (
            Tensor("member_vector", "FP32", (-1,)),
            Tensor("member_id", "INT64", (1,)),
            Tensor("k", "INT32", (1,)),
            Tensor("exclude", "INT64", (-1,), optional=True),
        ),
        (Tensor("title_ids", "INT64", (-1,)), Tensor("sources", "UINT8", (-1,))),
    ),
    "candidate_scoring": (
        (
            Tensor("member_vector", "FP32", (-1,)),
            Tensor("title_ids", "INT64", (-1,)),
            Tensor("k", "INT32", (1,)),
        ),
        (Tensor("title_ids", "INT64", (-1,)), Tensor("scores", "FP32", (-1,))),
    ),
    "row_ranking": (
        (Tensor("row_state", "FP32", (-1,)), Tensor("row_ids", "INT64", (-1,))),
        (Tensor("scores", "FP32", (-1,)),),
    ),
}

# Where a candidate came from; its place in this tuple is the UINT8 on the wire. "none" stands past the end of a row.
SOURCES = (
    "none", "embedding", "item_item", "user_user", "popular", "new", "explore", "history", "editorial", "lexical",
    "neighbour",
)  # fmt: skip

ANONYMOUS = -1
MAX_EVENTS = 100_000
MAX_EVENT_BYTES = 32 * 2**20  # of a request's events and context together, as JSON
MAX_ROWS, MAX_TITLES = 100, 500
MAX_TEXT = 256  # characters of surface, of experiment, and of a query in the context


def wire_dict() -> dict[str, Any]:
    """The wire contract as plain values, for the hash and for documents."""
    return {
        "models": {m: [[asdict(t) for t in side] for side in sides] for m, sides in WIRE.items()},
        "sources": SOURCES,
    }
