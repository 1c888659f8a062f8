"""The row catalogue: rows are data. A row is a label, an expression that says which titles may stand in it, limits
and pins; whoever wants another row adds a line to rows.json.

An expression is a small subset of Python, evaluated for all titles at once and never executed as code:
    "Comedy" in genres               a metadata column of lists
    1980 <= year < 1990              a column of numbers; a title without the value does not qualify
    language == "ja"                 a column of strings
    popularity >= 0.9                share of the catalogue that is less popular, 0 to 1
    year >= latest_year - 1          the newest year in the catalogue
    similar_to_liked(1)              near the member's most recent liked title (2: the one before); `{title}` in the
                                     label becomes its name
    history_length >= 5              of the member
joined by and, or, not and parentheses. Shape letters: N titles, R rows.
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

_DYNAMIC = ("history_length", "similar_to_liked")
_COMPARE = {
    ast.Lt: operator.lt, ast.LtE: operator.le, ast.Gt: operator.gt, ast.GtE: operator.ge, ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
}  # fmt: skip
_ARITHMETIC = {ast.Add: operator.add, ast.Sub: operator.sub}


class RowError(ValueError):
    """A row of the catalogue is wrong; the message names the row and the part."""


@dataclass(frozen=True)
class RowSpec:
    """One row. seen: whether titles the member has seen are left out, the only ones, or allowed ("any").

    min_titles: with fewer the row is not shown. pin: its fixed place on the page, 0 the top. first: title ids that
    stand first in it when they are eligible.
    """

    row_id: int
    label: str
    where: str
    seen: Literal["exclude", "only", "any"] = "exclude"
    min_titles: int = 4
    max_titles: int = 40
    pin: int | None = None
    first: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "first", tuple(self.first))
        if not isinstance(self.row_id, int) or self.row_id < 0:
            raise RowError(f"row {self.row_id!r} ({self.label!r}): row_id must be an integer of at least 0")
        if self.seen not in ("exclude", "only", "any"):
            raise RowError(f"row {self.row_id} ({self.label!r}): seen {self.seen!r} is not exclude, only or any")
        if not 1 <= self.min_titles <= self.max_titles:
            raise RowError(
                f"row {self.row_id} ({self.label!r}): min_titles {self.min_titles} and max_titles "
                f"{self.max_titles} must satisfy 1 <= min <= max"
            )
        if self.pin is not None and self.pin < 0:
            raise RowError(f"row {self.row_id} ({self.label!r}): pin {self.pin} must be at least 0")


@dataclass(frozen=True)
class TitleColumns:
    """Title metadata as arrays [N]: numbers float64 (NaN absent), strings object, lists as one bool [N] per value."""

    count: int
    numbers: Mapping[str, np.ndarray]
    strings: Mapping[str, np.ndarray]
    lists: Mapping[str, Mapping[str, np.ndarray]]

    @classmethod
    def from_metadata(cls, count: int, metadata: Mapping[str, Sequence[Any]], popularity: np.ndarray) -> TitleColumns:
        """popularity: plays [N], which become the percentile column `popularity`."""
        order = np.argsort(np.argsort(popularity, kind="stable"), kind="stable")
        numbers: dict[str, np.ndarray] = {"popularity": order / max(1, count - 1)}
        strings: dict[str, np.ndarray] = {}
        lists: dict[str, dict[str, np.ndarray]] = {}
        for name, values in metadata.items():
            example = next((v for v in values if v is not None), None)
            if isinstance(example, list):
                found: dict[str, np.ndarray] = {}
                for i, several in enumerate(values):
                    for v in several or ():
                        found.setdefault(v, np.zeros(count, bool))[i] = True
                lists[name] = found
            elif isinstance(example, int | float):
                numbers[name] = np.array([np.nan if v is None else v for v in values], np.float64)
            else:
                strings[name] = np.array(values, object)
        years = numbers.get("year")
        if years is not None and not np.isnan(years).all():
            numbers["latest_year"] = np.full(count, np.nanmax(years))
        return cls(count, numbers, strings, lists)


@dataclass(frozen=True)
class MemberView:
    """What a dynamic expression may ask of a member. liked: title indices, newest first."""

    history_length: int
    liked: Sequence[int]
    neighbours: Callable[[int], np.ndarray]


class Eligibility:
    """A parsed expression. Raises RowError if it is outside the subset or names an unknown column."""

    def __init__(self, text: str, columns: TitleColumns) -> None:
        self.text, self.columns = text, columns
        try:
            self.tree = ast.parse(text, mode="eval").body
        except SyntaxError as error:
            raise RowError(f"expression {text!r}: {error.msg} at position {error.offset}") from error
        names = {n.id for n in ast.walk(self.tree) if isinstance(n, ast.Name)}
        self.dynamic = bool(names & set(_DYNAMIC))
        self.seed = self._find_seed()
        nobody = MemberView(0, (), lambda title: np.empty(0, np.int64))
        self.static = self._mask(nobody)  # also proves that every part of the expression can be evaluated

    def mask(self, member: MemberView) -> np.ndarray:
        """bool [N]: the titles that qualify for this member."""
        return self._mask(member) if self.dynamic else self.static

    def _find_seed(self) -> int | None:
        calls = [n for n in ast.walk(self.tree) if isinstance(n, ast.Call)]
        for call in calls:
            number = call.args[0] if len(call.args) == 1 and not call.keywords else None
            if not isinstance(call.func, ast.Name) or call.func.id != "similar_to_liked":
                raise RowError(f"expression {self.text!r}: the only function is similar_to_liked(n)")
            if not isinstance(number, ast.Constant) or not isinstance(number.value, int) or number.value < 1:
                raise RowError(f"expression {self.text!r}: similar_to_liked takes a whole number from 1")
            return number.value
        return None

    def _mask(self, member: MemberView) -> np.ndarray:
        value = self._evaluate(self.tree, member)
        if isinstance(value, bool | np.bool_):
            return np.full(self.columns.count, bool(value))
        if not isinstance(value, np.ndarray) or value.dtype != bool:
            raise RowError(f"expression {self.text!r} gives values, not true or false; compare them with something")
        return value

    def _evaluate(self, node: ast.expr, member: MemberView) -> Any:
        if isinstance(node, ast.BoolOp):
            parts = [self._condition(v, member) for v in node.values]
            combine = np.logical_and if isinstance(node.op, ast.And) else np.logical_or
            result = parts[0]
            for part in parts[1:]:
                result = combine(result, part)
            return result
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            return np.logical_not(self._condition(node.operand, member))
        if isinstance(node, ast.Compare):
            return self._compare(node, member)
        if isinstance(node, ast.BinOp) and type(node.op) in _ARITHMETIC:
            left, right = self._evaluate(node.left, member), self._evaluate(node.right, member)
            try:
                return _ARITHMETIC[type(node.op)](left, right)
            except TypeError as error:
                raise RowError(f"expression {self.text!r}: {error}") from error
        if isinstance(node, ast.Constant) and isinstance(node.value, str | int | float | bool):
            return node.value
        if isinstance(node, ast.Name):
            return self._name(node.id, member)
        if isinstance(node, ast.Call):
            return self._similar(member)
        raise RowError(f"expression {self.text!r}: {ast.unparse(node)!r} is not allowed here")

    def _condition(self, node: ast.expr, member: MemberView) -> Any:
        value = self._evaluate(node, member)
        if isinstance(value, bool | np.bool_) or (isinstance(value, np.ndarray) and value.dtype == bool):
            return value
        raise RowError(f"expression {self.text!r}: {ast.unparse(node)!r} is not a condition")

    def _compare(self, node: ast.Compare, member: MemberView) -> Any:
        result: Any = True
        left = node.left
        for op, right in zip(node.ops, node.comparators, strict=True):
            if isinstance(op, ast.In | ast.NotIn):
                part = self._contains(left, right)
                part = ~part if isinstance(op, ast.NotIn) else part
            elif type(op) in _COMPARE:
                try:
                    part = _COMPARE[type(op)](self._evaluate(left, member), self._evaluate(right, member))
                except TypeError as error:
                    raise RowError(f"expression {self.text!r}: {error}") from error
            else:
                raise RowError(f"expression {self.text!r}: comparison {type(op).__name__} is not allowed")
            result, left = np.logical_and(result, part), right
        return result

    def _contains(self, value: ast.expr, column: ast.expr) -> np.ndarray:
        if not (isinstance(value, ast.Constant) and isinstance(value.value, str) and isinstance(column, ast.Name)):
            raise RowError(f'expression {self.text!r}: write "value" in column')
        if column.id not in self.columns.lists:
            raise RowError(f"expression {self.text!r}: no column of lists {column.id!r}; {self._known()}")
        return self.columns.lists[column.id].get(value.value, np.zeros(self.columns.count, bool))

    def _name(self, name: str, member: MemberView) -> Any:
        if name == "history_length":
            return member.history_length
        for group in (self.columns.numbers, self.columns.strings):
            if name in group:
                return group[name]
        raise RowError(f"expression {self.text!r}: no column {name!r}; {self._known()}")

    def _similar(self, member: MemberView) -> np.ndarray:
        mask = np.zeros(self.columns.count, bool)
        if self.seed is not None and self.seed <= len(member.liked):
            mask[member.neighbours(member.liked[self.seed - 1])] = True
        return mask

    def _known(self) -> str:
        c = self.columns
        return f"known: {', '.join(sorted([*c.numbers, *c.strings, *c.lists, *_DYNAMIC]))}"


class RowCatalogue:
    """The rows of a bundle with their parsed expressions, in the order of rows.json.

    liked_actions: action types that make a title liked; an event without an action type counts as liked.
    """

    def __init__(self, data: Any, columns: TitleColumns) -> None:
        try:
            self.liked_actions: tuple[str, ...] = tuple(data["liked_actions"])
            self.specs = tuple(RowSpec(**row) for row in data["rows"])
        except (KeyError, TypeError) as error:
            raise RowError(f"rows.json: {error}") from error
        ids = [s.row_id for s in self.specs]
        if doubled := sorted({i for i in ids if ids.count(i) > 1}):
            raise RowError(f"rows.json: row_id {doubled} is used more than once")
        self.ids = np.array(ids, np.int64)
        self.eligibility = []
        for s in self.specs:
            try:
                self.eligibility.append(Eligibility(s.where, columns))
            except RowError as error:
                raise RowError(f"row {s.row_id} ({s.label!r}): {error}") from error
        self.static = np.stack([e.static for e in self.eligibility]) if ids else np.zeros((0, columns.count), bool)
        self.dynamic = [i for i, e in enumerate(self.eligibility) if e.dynamic]

    def __len__(self) -> int:
        return len(self.specs)

    def masks(self, member: MemberView, titles: np.ndarray) -> np.ndarray:
        """bool [R, len(titles)]: which of some titles qualify for which row, seen or not."""
        masks = self.static[:, titles]
        for i in self.dynamic:
            masks[i] = self.eligibility[i].mask(member)[titles]
        return masks

    def seeds(self, member: MemberView) -> dict[int, int]:
        """Title index that stands behind a row, by row index; rows whose seed the member lacks are missing."""
        found = {i: e.seed for i, e in enumerate(self.eligibility) if e.seed is not None}
        return {i: member.liked[seed - 1] for i, seed in found.items() if seed <= len(member.liked)}


def rows_to_json(specs: Sequence[RowSpec], liked_actions: Sequence[str]) -> dict[str, Any]:
    """The content of rows.json."""
    return {"liked_actions": list(liked_actions), "rows": [asdict(s) for s in specs]}
