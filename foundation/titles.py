"""The titles of a catalogue: ids, names, metadata; and their metadata as encoded ids.

Shape letters: N titles (index order is id order), C encoded title columns.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .encoding import bucket
from .events import code_strings
from .schema import FIRST, Schema, SchemaError, Vocabulary

Metadata = list[list[str] | None] | list[str | None] | list[float | None]


@dataclass(frozen=True)
class Titles:
    """ids int64 [N], sorted; names [N]; metadata: per name a list [N] of strings, numbers, lists of strings or None."""

    ids: np.ndarray
    names: list[str]
    metadata: Mapping[str, Metadata]

    def __post_init__(self) -> None:
        if (np.diff(self.ids) <= 0).any() or (self.ids < 0).any():
            raise ValueError("title ids must be sorted, different and at least 0")
        lengths = {"names": len(self.names)} | {k: len(v) for k, v in self.metadata.items()}
        if wrong := [name for name in self.names if not isinstance(name, str)]:
            raise ValueError(f"title names must be texts, got {wrong[0]!r}")
        if wrong := {k: n for k, n in lengths.items() if n != len(self.ids)}:
            raise ValueError(f"{len(self.ids)} title ids, but {wrong}")

    def __len__(self) -> int:
        return len(self.ids)

    @classmethod
    def from_columns(cls, ids: Sequence[int], names: list[str], metadata: Mapping[str, Sequence[Any]]) -> Titles:
        """Titles in any order, sorted by id."""
        order = np.argsort(np.asarray(ids, np.int64), kind="stable")
        return cls(
            np.asarray(ids, np.int64)[order],
            [names[i] for i in order],
            {k: [v[i] for i in order] for k, v in metadata.items()},
        )

    def save(self, path: Path) -> None:
        """Write as JSON."""
        data = {"ids": self.ids.tolist(), "names": self.names, "metadata": dict(self.metadata)}
        path.write_text(json.dumps(data, ensure_ascii=False, separators=(",", ":")), "utf-8")

    @classmethod
    def load(cls, path: Path) -> Titles:
        """Read what `save` wrote. Raises ValueError naming the file."""
        try:
            data = json.loads(path.read_text("utf-8"))
            return cls(np.array(data["ids"], np.int64), data["names"], data["metadata"])
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path}: not a title table ({error})") from error


def fit_title_vocabularies(schema: Schema, titles: Titles) -> dict[str, Vocabulary]:
    """Vocabularies by path (`title.genres`) of the title fields that have one, values sorted."""
    found: dict[str, Vocabulary] = {}
    for f in schema.title_fields:
        if f.has_vocabulary:
            values: set[str] = set()
            for v in titles.metadata.get(f.path.removeprefix("title."), ()):
                values.update(v if isinstance(v, list) else [] if v is None else [str(v)])
            if wrong := [v for v in values if not isinstance(v, str)]:
                raise SchemaError(f"title metadata {f.path!r} has {wrong[0]!r} in a list of strings")
            found[f.path] = Vocabulary(sorted(values))
    return found


def encode_titles(schema: Schema, vocabularies: Mapping[str, Vocabulary], titles: Titles) -> np.ndarray:
    """Metadata ids int32 [FIRST+N, C]: row FIRST+i is title i; rows ABSENT and UNKNOWN are all absent.

    vocabularies: by path, from `fit_title_vocabularies`. Raises SchemaError for a value of the wrong type.
    """
    ids = np.zeros((FIRST + len(titles), sum(f.slots for f in schema.title_fields)), np.int32)
    for f in schema.title_fields:
        name = f.path.removeprefix("title.")
        values: Any = titles.metadata.get(name)
        if values is None:
            continue
        start, stop = schema.title_spans[f.name]
        try:
            kinds = {"number": int | float, "categories": list, "category": str | int}[f.kind]
            if wrong := [v for v in values if v is not None and not isinstance(v, kinds)]:
                raise TypeError(f"it has {wrong[0]!r}")
            if f.kind == "number":
                ids[FIRST:, start] = bucket(f, np.array([np.nan if v is None else float(v) for v in values]))
            else:
                coded = code_strings(values, f.slots if f.kind == "categories" else 0)
                encoded = vocabularies[f.path].encode_coded(coded.codes, coded.values)
                ids[FIRST:, start:stop] = encoded.reshape(len(titles), stop - start)
        except (TypeError, ValueError) as error:
            raise SchemaError(f"title metadata {name!r} does not fit kind {f.kind!r}: {error}") from error
    return ids
