"""The row catalogue: rows are data. A row is a label, an expression that says which titles may stand in it, limits
and pins; whoever wants another row adds a line to rows.json.

An expression is a small subset of Python, evaluated for all titles at once and never executed as code:
    "Comedy" in genres               a metadata column of lists
    1980 <= year < 1990              a column of numbers
    language == "ja"                 a column of strings
    kids, or kids == True            a column of true and false
    popularity >= 0.9                share of the catalogue that is less popular, 0 to 1
    year >= latest_year - 1          the newest year in the catalogue
    similar_to_liked(1)              near the member's most recent liked title (2: the one before); `{title}` in the
                                     label becomes its name
    history_length >= 5              of the member
joined by and, or, not and parentheses. A title that lacks a value qualifies neither by `year < 1990` nor by
`not year < 1990`: what is not known of a title never lets it in. Shape letters: N titles, R rows.
"""

from __future__ import annotations

import ast
import functools
import json
import operator
import reprlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, TypeGuard

import numpy as np

from ..foundation.titles import Titles

_DYNAMIC = ("history_length", "similar_to_liked")
RESERVED = ("popularity", "latest_year", *_DYNAMIC)  # no column of title metadata may have these names
_LONGEST_EXPRESSION = 1000  # characters; keeps the parser and the evaluation off the end of the stack
_COMPARE = {
    ast.Lt: operator.lt, ast.LtE: operator.le, ast.Gt: operator.gt, ast.GtE: operator.ge, ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
}  # fmt: skip
_LARGEST_NUMBER = 2**53  # from here on float64 skips integers
_ARITHMETIC = {ast.Add: operator.add, ast.Sub: operator.sub}


class RowError(ValueError):
    """A row of the catalogue is wrong; the message names the row and the part."""


@dataclass(frozen=True)
class RowSpec:
    """One row. seen: whether titles the member has seen are left out, the only ones, or allowed ("any").

    min_titles: with fewer the row is not shown. pin: its fixed place on the page, 0 the top; the most popular titles
    that fit a pinned row are candidates if others do not fill it. first: title ids that stand first in it, in this
    order, when they are eligible; they are candidates for everybody.
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
        who = f"row {self.row_id!r} ({self.label!r})"
        if not _is_whole(self.row_id, 0):
            raise RowError(f"{who}: row_id must be an integer from 0 to 2**63 - 1")
        if not isinstance(self.label, str) or not isinstance(self.where, str):
            raise RowError(f"{who}: label and where must be texts, where is {self.where!r}")
        if self.seen not in ("exclude", "only", "any"):
            raise RowError(f"{who}: seen {self.seen!r} is not exclude, only or any")
        if not (_is_whole(self.min_titles, 1) and _is_whole(self.max_titles, self.min_titles)):
            raise RowError(
                f"{who}: min_titles {self.min_titles!r} and max_titles {self.max_titles!r} must be integers with "
                "1 <= min <= max"
            )
        if self.pin is not None and not _is_whole(self.pin, 0):
            raise RowError(f"{who}: pin {self.pin!r} must be an integer of at least 0")
        if not isinstance(self.first, list | tuple) or not all(_is_whole(t, 0) for t in self.first):
            raise RowError(f"{who}: first {self.first!r} must be a list of title ids")
        object.__setattr__(self, "first", tuple(self.first))


def _is_whole(value: Any, low: int) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and low <= value < 2**63


@dataclass(frozen=True)
class TitleColumns:
    """Title metadata as arrays [N]: numbers float64 (NaN absent), truths bool, strings str, lists as one bool [N] per
    value; known: bool [N], which titles have the value at all."""

    count: int
    numbers: Mapping[str, np.ndarray]
    truths: Mapping[str, np.ndarray]
    strings: Mapping[str, np.ndarray]
    lists: Mapping[str, Mapping[str, np.ndarray]]
    known: Mapping[str, np.ndarray]

    @classmethod
    def from_metadata(cls, count: int, metadata: Mapping[str, Sequence[Any]], popularity: np.ndarray) -> TitleColumns:
        """popularity: plays [N], which become the percentile column `popularity`."""
        order = np.argsort(np.argsort(popularity, kind="stable"), kind="stable")
        numbers: dict[str, np.ndarray] = {"popularity": order / max(1, count - 1)}
        truths: dict[str, np.ndarray] = {}
        strings: dict[str, np.ndarray] = {}
        lists: dict[str, dict[str, np.ndarray]] = {}
        known: dict[str, np.ndarray] = {}
        for name, values in metadata.items():
            known[name] = np.array([v is not None for v in values], bool)
            example = next((v for v in values if v is not None), None)
            if isinstance(example, list):
                found: dict[str, np.ndarray] = {}
                for i, several in enumerate(values):
                    for v in several or ():
                        found.setdefault(v, np.zeros(count, bool))[i] = True
                lists[name] = found
            elif isinstance(example, bool):
                truths[name] = np.array([v is True for v in values])
            elif isinstance(example, int | float):
                numbers[name] = np.array([np.nan if v is None else v for v in values], np.float64)
            else:
                strings[name] = np.array(["" if v is None else str(v) for v in values], str)
        years = numbers.get("year")
        if years is not None and not np.isnan(years).all():
            numbers["latest_year"] = np.full(count, np.nanmax(years))
        return cls(count, numbers, truths, strings, lists, known)


@dataclass(frozen=True)
class MemberView:
    """What a dynamic expression may ask of a member, and of which titles it is asked. liked: title indices, newest
    first; titles: indices int64 [K], or all."""

    history_length: int
    liked: Sequence[int]
    neighbours: Callable[[int], np.ndarray]
    titles: np.ndarray | None = None

    def of(self, values: np.ndarray) -> np.ndarray:
        """Those of all titles' values [N] that are asked for."""
        return values if self.titles is None else values[self.titles]


class Eligibility:
    """A parsed expression. Raises RowError if it is outside the subset or names an unknown column."""

    def __init__(self, text: str, columns: TitleColumns) -> None:
        self.text, self.columns = text, columns
        if len(text) > _LONGEST_EXPRESSION:
            raise self._error(f"{len(text)} characters are more than {_LONGEST_EXPRESSION}")
        nobody = MemberView(0, (), lambda title: np.empty(0, np.int64))
        try:
            self.tree = ast.parse(text, mode="eval").body
            names = {n.id for n in ast.walk(self.tree) if isinstance(n, ast.Name)}
            self.dynamic = bool(names & set(_DYNAMIC))
            self.seed = self._find_seed()
            self.static = self._mask(nobody)  # also proves that every part of the expression can be evaluated
        except SyntaxError as error:
            raise self._error(f"{error.msg} at position {error.offset}") from error
        except (RecursionError, MemoryError) as error:
            raise self._error("it is nested too deeply") from error

    def mask(self, member: MemberView) -> np.ndarray:
        """bool [N], or of fewer titles if `member` says so: those that qualify for this member."""
        return self._mask(member) if self.dynamic else member.of(self.static)

    def _find_seed(self) -> int | None:
        seeds: set[int] = set()
        for call in (n for n in ast.walk(self.tree) if isinstance(n, ast.Call)):
            number = call.args[0] if len(call.args) == 1 and not call.keywords else None
            if not isinstance(call.func, ast.Name) or call.func.id != "similar_to_liked":
                raise self._error("the only function is similar_to_liked(n)")
            if not isinstance(number, ast.Constant) or not _is_whole(number.value, 1):
                raise self._error("similar_to_liked takes a whole number from 1")
            seeds.add(number.value)
        if len(seeds) > 1:
            raise self._error("similar_to_liked stands for one title, which the label names; give the same number")
        return next(iter(seeds), None)

    def _mask(self, member: MemberView) -> np.ndarray:
        found = self._where(self.tree, True, member)
        count = self.columns.count if member.titles is None else len(member.titles)
        return np.broadcast_to(found, count).copy()

    def _where(self, node: ast.expr, wanted: bool, member: MemberView) -> Any:
        """bool [N] (or one bool for all): the titles for which a condition is known to be `wanted`."""
        if isinstance(node, ast.BoolOp):
            parts = [self._where(v, wanted, member) for v in node.values]
            return _joined(parts, isinstance(node.op, ast.And) == wanted)
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            return self._where(node.operand, not wanted, member)
        if isinstance(node, ast.Compare):
            operands = [node.left, *node.comparators]
            pairs = zip(node.ops, operands[:-1], operands[1:], strict=True)
            return _joined([self._compare(op, a, b, member) == wanted for op, a, b in pairs], wanted)
        if isinstance(node, ast.Constant) and isinstance(node.value, bool):
            return node.value == wanted
        if isinstance(node, ast.Call):
            return self._similar(member) == wanted
        if isinstance(node, ast.Name) and node.id in self.columns.truths:
            values, known = self._column(node.id, member)
            return known & (values == wanted)
        self._value(node, member)  # says so if the part is not allowed at all
        raise self._error(f"{ast.unparse(node)!r} gives values, not true or false; compare them with something")

    def _compare(self, op: ast.cmpop, left: ast.expr, right: ast.expr, member: MemberView) -> np.ndarray:
        """int8 [N] (or one): 1 true, 0 false, −1 where a title lacks the value."""
        if isinstance(op, ast.In | ast.NotIn):
            part, known = self._contains(left, right, member)
            return np.where(known, part == isinstance(op, ast.In), -1)
        if type(op) not in _COMPARE:
            raise self._error(f"comparison {type(op).__name__} is not allowed")
        (a, a_known), (b, b_known) = self._value(left, member), self._value(right, member)
        if _kind(a) != _kind(b):
            raise self._error(
                f"{ast.unparse(left)!r} is a {_kind(a)} and {ast.unparse(right)!r} a {_kind(b)}; compare like with like"
            )
        return np.where(a_known & b_known, _COMPARE[type(op)](a, b), -1)

    def _value(self, node: ast.expr, member: MemberView) -> tuple[Any, Any]:
        """(numbers or texts [N] or one of them, bool [N] or one: which are known)."""
        if isinstance(node, ast.BinOp) and type(node.op) in _ARITHMETIC:
            (a, a_known), (b, b_known) = self._value(node.left, member), self._value(node.right, member)
            if {_kind(a), _kind(b)} != {"number"}:
                raise self._error(f"{ast.unparse(node)!r} calculates with what is no number")
            return _ARITHMETIC[type(node.op)](a, b), a_known & b_known
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
            return self._value(ast.BinOp(ast.Constant(0), ast.Sub(), node.operand), member)
        if isinstance(node, ast.Constant) and isinstance(node.value, str | int | float):
            if isinstance(node.value, str):
                return np.array(node.value), np.True_
            if isinstance(node.value, bool):
                return np.bool_(node.value), np.True_
            if abs(node.value) <= _LARGEST_NUMBER:
                return np.float64(node.value), np.True_
        if isinstance(node, ast.Name):
            return self._column(node.id, member)
        raise self._error(f"{ast.unparse(node)!r} is not allowed here")

    def _contains(self, value: ast.expr, column: ast.expr, member: MemberView) -> tuple[np.ndarray, np.ndarray]:
        if not (isinstance(value, ast.Constant) and isinstance(value.value, str) and isinstance(column, ast.Name)):
            raise self._error('write "value" in column')
        if column.id not in self.columns.lists:
            raise self._error(f"no column of lists {column.id!r}; {self._known()}")
        titles = self.columns.lists[column.id].get(value.value, np.zeros(self.columns.count, bool))
        return member.of(titles), member.of(self.columns.known[column.id])

    def _column(self, name: str, member: MemberView) -> tuple[Any, Any]:
        if name == "history_length":
            return np.float64(member.history_length), np.True_
        if name in self.columns.numbers:
            numbers = member.of(self.columns.numbers[name])
            return numbers, ~np.isnan(numbers)
        for columns in (self.columns.strings, self.columns.truths):
            if name in columns:
                return member.of(columns[name]), member.of(self.columns.known[name])
        raise self._error(f"no column {name!r} of single values; {self._known()}")

    def _similar(self, member: MemberView) -> np.ndarray:
        mask = np.zeros(self.columns.count, bool)
        if self.seed is not None and self.seed <= len(member.liked):
            mask[member.neighbours(member.liked[self.seed - 1])] = True
        return member.of(mask)

    def _known(self) -> str:
        c = self.columns
        return f"known: {', '.join(sorted([*c.numbers, *c.truths, *c.strings, *c.lists, *_DYNAMIC]))}"

    def _error(self, words: str) -> RowError:
        return RowError(f"expression {self.text[:200]!r}: {words}")


def _joined(parts: Sequence[Any], every: bool) -> Any:
    return functools.reduce(np.logical_and if every else np.logical_or, parts)


def _kind(value: np.ndarray) -> str:
    return {"U": "text", "b": "truth"}.get(value.dtype.kind, "number")


class RowCatalogue:
    """The rows of a bundle with their parsed expressions, in the order of rows.json.

    liked_actions: action types that make a title liked; an event without an action type counts as liked. diversity:
    from 0, a row's best titles by score, to 1, the most varied (diversity.py). Raises RowError naming the row and what
    is wrong with it.
    """

    def __init__(self, data: Any, columns: TitleColumns) -> None:
        if not isinstance(data, Mapping) or set(data) - {"diversity"} != {"liked_actions", "rows"}:
            raise RowError(f'{reprlib.repr(data)} is no row catalogue; give {{"liked_actions": […], "rows": […]}}')
        liked, rows, diversity = data["liked_actions"], data["rows"], data.get("diversity", 0.0)
        if isinstance(diversity, bool) or not isinstance(diversity, int | float) or not 0 <= diversity <= 1:
            raise RowError(f"diversity is {reprlib.repr(diversity)}; give a number from 0, by score, to 1, most varied")
        self.diversity = float(diversity)
        if not isinstance(liked, list | tuple) or not all(isinstance(action, str) for action in liked):
            raise RowError(f'liked_actions is {reprlib.repr(liked)}; give a list of action types, such as ["play"]')
        if not isinstance(rows, list | tuple) or not rows:
            raise RowError(f"rows is {reprlib.repr(rows)}; give a list of rows, one at least")
        self.liked_actions: tuple[str, ...] = tuple(liked)
        self.specs = tuple(_spec(number, row) for number, row in enumerate(rows, start=1))
        ids = [s.row_id for s in self.specs]
        if doubled := sorted({i for i in ids if ids.count(i) > 1}):
            raise RowError(f"row_id {doubled} is used more than once")
        self.ids = np.array(ids, np.int64)
        self.eligibility = []
        for s in self.specs:
            try:
                self.eligibility.append(Eligibility(s.where, columns))
            except RowError as error:
                raise RowError(f"row {s.row_id} ({s.label!r}): {error}") from error
        self.static = np.stack([e.static for e in self.eligibility])
        self._bits = np.packbits(self.static.T, axis=1)  # a title's rows lie together, so that reading some is quick
        self._unseen, self._seen = (np.array([s.seen != no for s in self.specs])[:, None] for no in ("only", "exclude"))
        self.dynamic = [i for i, e in enumerate(self.eligibility) if e.dynamic]

    def __len__(self) -> int:
        return len(self.specs)

    def masks(self, member: MemberView, titles: np.ndarray, seen: np.ndarray) -> np.ndarray:
        """bool [R, K]: which titles int64 [K] (indices) may stand in which row; seen bool [K], which of them the member
        has seen."""
        bits = np.unpackbits(self._bits[titles], axis=1, count=len(self))
        masks = np.ascontiguousarray(bits.T).view(bool)
        asked = replace(member, titles=titles)
        for i in self.dynamic:
            masks[i] = self.eligibility[i].mask(asked)
        return masks & np.where(seen, self._seen, self._unseen)

    def seeds(self, member: MemberView) -> dict[int, int]:
        """Title index that stands behind a row, by row index; rows whose seed the member lacks are missing."""
        found = {i: e.seed for i, e in enumerate(self.eligibility) if e.seed is not None}
        return {i: member.liked[seed - 1] for i, seed in found.items() if seed <= len(member.liked)}


def _spec(number: int, row: Any) -> RowSpec:
    needed = {f.name: f.default is MISSING for f in fields(RowSpec)}
    if not isinstance(row, Mapping):
        raise RowError(f"row number {number} is {reprlib.repr(row)}; give an object with {', '.join(needed)}")
    who = f"row number {number} ({reprlib.repr(row.get('label'))})"
    if strange := [key for key in row if key not in needed]:
        raise RowError(f"{who} has the key {reprlib.repr(strange[0])}; a row's keys are {', '.join(needed)}")
    if missing := [key for key, must in needed.items() if must and key not in row]:
        raise RowError(f"{who} lacks {', '.join(map(repr, missing))}")
    return RowSpec(**row)


def read_rows(path: Path, titles: Titles) -> Any:
    """The content of a rows.json that a person wrote, checked for a catalogue of titles. Raises RowError naming the
    file, the row and what is wrong."""
    try:
        data = json.loads(path.read_text("utf-8"))
        RowCatalogue(data, TitleColumns.from_metadata(len(titles), titles.metadata, np.zeros(len(titles))))
    except RowError as error:
        raise RowError(f"{path}: {error}") from error
    except (OSError, RecursionError, ValueError) as error:
        raise RowError(f"{path} cannot be read as JSON: {error}") from error
    return data


def rows_to_json(specs: Sequence[RowSpec], liked_actions: Sequence[str]) -> dict[str, Any]:
    """The content of rows.json."""
    return {"liked_actions": list(liked_actions), "diversity": 0.0, "rows": [asdict(s) for s in specs]}
