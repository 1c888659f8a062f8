"""What a client gives back: pages, rows of titles, and the names of a bundle."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Title:
    """A title on a page. score: of the title for this member, comparable within a page. source: how it was found, of
    SOURCES. probability: that the next title new to the member is this one, which means the same on every homepage;
    None for a title that the member has seen, on other surfaces, and where the server is too old to say."""

    title_id: int
    name: str
    score: float
    source: str
    probability: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """The title as plain values for JSON."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Row:
    """A row of a page, best title first. label: what a member reads above it, such as "TV Comedies". pinned: whether it
    stands at its place whatever its score."""

    row_id: int
    label: str
    score: float
    titles: tuple[Title, ...]
    pinned: bool = False


@dataclass(frozen=True, slots=True)
class Homepage:
    """A member's page, top row first.

    member_id: None if anonymous. bundle_version: of the bundle that ranked it. fallback: None, or why the
    page is not personal (or is empty: "nothing_left"). info: all that the server says of it: `counts` of odd events,
    `unknown` names of the first unknown values and keys, `pinned` row ids, `title_log_normaliser`, `stages_ms`.
    """

    member_id: int | None
    bundle_version: int
    fallback: str | None
    rows: tuple[Row, ...]
    info: Mapping[str, Any] = field(hash=False, repr=False)

    def to_dict(self) -> dict[str, Any]:
        """The page as plain values for JSON, without `info`."""
        return {
            "member_id": self.member_id,
            "bundle_version": self.bundle_version,
            "fallback": self.fallback,
            "rows": [
                {
                    "row_id": row.row_id,
                    "label": row.label,
                    "score": row.score,
                    "pinned": row.pinned,
                    "titles": [t.to_dict() for t in row.titles],
                }
                for row in self.rows
            ],
        }


@dataclass(frozen=True, slots=True)
class Results:
    """The answer of a surface that shows one row, best title first: a search, or titles like another.

    surface: its name. label: what a member reads above it. member_id, bundle_version, info: as of a Homepage. fallback:
    None, or why it is not personal, or why it has no titles: "no_match", "nothing_left".
    """

    member_id: int | None
    bundle_version: int
    surface: str
    label: str
    fallback: str | None
    titles: tuple[Title, ...]
    info: Mapping[str, Any] = field(hash=False, repr=False)

    def to_dict(self) -> dict[str, Any]:
        """The answer as plain values for JSON, without `info`."""
        return {
            "member_id": self.member_id,
            "bundle_version": self.bundle_version,
            "surface": self.surface,
            "label": self.label,
            "fallback": self.fallback,
            "titles": [t.to_dict() for t in self.titles],
        }


@dataclass(frozen=True, slots=True)
class Catalogue:
    """The names of one bundle. titles: name by title id. rows: label by row id, with `{title}` left open. fingerprint:
    of the bundle's content, as another one may bear the same number some day."""

    bundle_version: int
    fingerprint: str
    schema_hash: str
    titles: Mapping[int, str] = field(hash=False, repr=False)
    rows: Mapping[int, str] = field(hash=False, repr=False)

    def name(self, title_id: int) -> str:
        """The title's name; "title <id>" if the catalogue lacks it: a page is worth more than its names."""
        return self.titles.get(title_id, f"title {title_id}")

    def label(self, row_id: int, title_id: int | None = None) -> str:
        """The row's label with the title's name for `{title}`, or an ellipsis if no title is given."""
        name = "…" if title_id is None else self.name(title_id)
        return self.rows.get(row_id, f"row {row_id}").replace("{title}", name)
