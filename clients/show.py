"""How the command line shows things: pages, tables, bars. And the two JSON inputs it reads from people."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console, Group
from rich.progress import (
    BarColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from .client import Homepage

_STATUS_STYLE = {"ok": "green", "warning": "yellow", "missing": "red"}


def homepage(console: Console, page: Homepage) -> None:
    """Rows down, titles across, both with their scores; a row of titles takes as many lines as it needs."""
    who = "an anonymous member" if page.member_id is None else f"member {page.member_id}"
    fallback = f" — fallback: {page.fallback}" if page.fallback else ""
    console.print(f"Homepage of {who} (bundle {page.bundle_version}){fallback}", style="bold", highlight=False)
    counts = {name: n for name, n in page.info.get("counts", {}).items() if n}
    if counts:
        notes = ", ".join(f"{n:,} {name.replace('_', ' ')}" for name, n in counts.items())
        console.print(f"of the history: {notes}", style="dim", highlight=False)
    columns = max(3, console.width // 20)
    for number, row in enumerate(page.rows, start=1):
        grid = Table.grid(padding=(0, 1, 0, 0))
        for _ in range(columns):
            grid.add_column(width=console.width // columns - 1, overflow="ellipsis", no_wrap=True)
        for start in range(0, len(row.titles), columns):
            shown = row.titles[start : start + columns]
            grid.add_row(*(Text(t.name) for t in shown))
            grid.add_row(*(Text(f"{t.score:.2f} {t.source}", style="dim") for t in shown))
        head = Text.assemble((f"{number:2}. {row.label}", "bold cyan"), (f"  {row.score:.3f}", "dim"))
        console.print(Group(head, grid), "")
    console.print("Row score: probability that the next title is among the row's first. Title score: dot product.",
                  style="dim")  # fmt: skip


def history(console: Console, member: int, events: Iterable[tuple[str, str, str]]) -> None:
    """(day, action, name) of some events."""
    table = Table.grid(padding=(0, 2))
    for day, action, name in events:
        table.add_row(Text(day, style="dim"), action, Text(name))
    console.print(f"What member {member} did last", style="bold", highlight=False)
    console.print(table, "")


def metrics(values: Mapping[str, float]) -> str:
    """One line of numbers."""
    return "  ".join(f"{name} {value:.4f}" for name, value in values.items())


def evaluation(console: Console, table: Mapping[str, Any]) -> None:
    """The model and the baselines, a line each."""
    lines = {"model": table["model"], "model, no request fields": table["model_without_request_fields"]}
    lines |= table["baselines"]
    shown = Table(title=f"{table['part']} items of {table['members']:,} members, full catalogue", title_justify="left")
    shown.add_column("ranked by")
    for name in ("HR@10", "NDCG@10", "MRR", "coverage", "pop. bias", "novelty"):
        shown.add_column(name, justify="right")
    for name, m in lines.items():
        columns = ("hr@10", "ndcg@10", "mrr", "coverage", "popularity_bias", "novelty_bits")
        shown.add_row(
            name.replace("_", " "),
            *(f"{m[c]:.4f}" if c != "novelty_bits" else f"{m[c]:.2f}" for c in columns),
        )
    console.print(shown)


def row_table(console: Console, table: Mapping[str, Mapping[str, float | None]]) -> None:
    """The row ranker and what it must beat."""
    shown = Table(title="rows, test items", title_justify="left")
    shown.add_column("ranked by")
    for name in ("NDCG", "AUC", "top row relevant"):
        shown.add_column(name, justify="right")
    for name, m in table.items():
        columns = ("row_ndcg", "row_auc", "top_row_relevant")
        shown.add_row(name.replace("_", " "), *("-" if (v := m[c]) is None else f"{v:.4f}" for c in columns))
    console.print(shown)


def checks(console: Console, found: Sequence[Any]) -> None:
    """What `doctor` found, a line each, with the way to mend it below."""
    for check in found:
        mark = Text(f"{check.status:8}", style=_STATUS_STYLE[check.status])
        console.print(Text.assemble(mark, (f"{check.name}: ", "bold"), check.found))
        if check.fix:
            console.print(Text(f"         {check.fix}"), soft_wrap=True)


@contextmanager
def bar(console: Console, quiet: bool = False) -> Iterator[Progress]:
    """A progress bar whose tasks the caller adds."""
    columns = (
        SpinnerColumn(), BarColumn(bar_width=24), TextColumn("{task.percentage:>3.0f}%"), TimeElapsedColumn(),
        TextColumn("left"), TimeRemainingColumn(), TextColumn("{task.description}", markup=False),
    )  # fmt: skip
    with Progress(*columns, console=console, disable=quiet, refresh_per_second=4) as progress:
        yield progress


@contextmanager
def waiting(console: Console, what: str, quiet: bool = False) -> Iterator[None]:
    """A spinner for work whose length is not known."""
    if quiet:
        yield
        return
    with console.status(what):
        yield


def read_events(path: Path) -> list[Any]:
    """Events of a JSON file: a list, an object with `events`, or one object a line; `-` reads stdin.

    Raises ValueError naming the file and where it is wrong.
    """
    text = sys.stdin.read() if str(path) == "-" else path.read_text("utf-8")
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        lines = [line for line in text.splitlines() if line.strip()]
        if len(lines) < 2:
            raise ValueError(f"{path} is not JSON: {error}") from error
        value = []
        for number, line in enumerate(lines, start=1):
            try:
                value.append(json.loads(line))
            except json.JSONDecodeError as wrong:
                raise ValueError(
                    f"{path} is neither JSON nor one JSON object a line: line {number}: {wrong}"
                ) from wrong
    if isinstance(value, dict):
        value = value.get("events", [value] if "timestamp" in value else None)
    if not isinstance(value, list):
        raise ValueError(f'{path} holds no list of events; give [{{"timestamp": …, "what": {{…}}}}, …]')
    return value


def read_context(text: str) -> dict[str, Any]:
    """The request's context. Raises ValueError."""
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"--context is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"--context is {value!r}; give a JSON object")
    return value
