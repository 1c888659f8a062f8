"""How the command line shows things: pages, tables, bars. And the two JSON inputs it reads from people."""

from __future__ import annotations

import json
import reprlib
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console, Group
from rich.progress import BarColumn, Progress, SpinnerColumn, Task, TextColumn, TimeRemainingColumn
from rich.table import Column, Table
from rich.text import Text

if TYPE_CHECKING:
    from .results import Homepage, Results, Title

console = Console()
errors = Console(stderr=True)

_STATUS_STYLE = {"ok": "green", "warning": "yellow", "missing": "red", "wrong": "red"}
# The README's words for what the tables compare.
_RANKED_BY = {
    "model": "Frontrow",
    "model_without_request_fields": "Frontrow, not told when",
    "popularity": "popularity",
    "item_item_cf": "item-item CF",
    "user_user_cf": "user-user CF",
    "row_ranker": "row ranker",
    "state_alone": "row ranker, state alone",
    "by_popularity": "popularity",
    "by_size": "size",
    "by_training_relevance": "share of hits in training",
}


def print_json(value: Any) -> None:
    """One line on stdout."""
    print(json.dumps(value, ensure_ascii=False))


def homepage(console: Console, page: Homepage) -> None:
    """Rows down, titles across, both with their scores; a row of titles takes as many lines as it needs."""
    _head(console, "Homepage of", page)
    columns = max(3, console.width // 20)
    for number, row in enumerate(page.rows, start=1):
        grid = Table.grid(padding=(0, 1, 0, 0))
        for _ in range(columns):
            grid.add_column(width=console.width // columns - 1, overflow="ellipsis", no_wrap=True)
        for start in range(0, len(row.titles), columns):
            shown = row.titles[start : start + columns]
            grid.add_row(*(Text(t.name) for t in shown))
            grid.add_row(*(Text(f"{_chance(t)} {t.source}", style="dim") for t in shown))
        head = Text.assemble((f"{number:2}. {row.label}", "bold cyan"), (f"  {row.score:.3f}", "dim"))
        console.print(Group(head, grid), "")
    console.print("Row: probability that the next title is among its first. Title: that the next new one is this.",
                  style="dim")  # fmt: skip


def results(console: Console, found: Results) -> None:
    """A title a line, with its score and its source."""
    _head(console, f"{found.label}, for", found)
    table = Table.grid(padding=(0, 2))
    for number, title in enumerate(found.titles, start=1):
        table.add_row(f"{number:3}", Text(title.name), Text(f"{title.score:.2f} {title.source}", style="dim"))
    console.print(table)
    if found.titles and found.surface == "search":
        console.print("The number: the member's score, which orders titles whose names fit as well.", style="dim")
    elif found.titles:
        what = "similarity, as nothing is known of the member" if found.fallback else "the member's score"
        console.print(f"The number, which orders them: {what}.", style="dim")


def _head(console: Console, what: str, page: Homepage | Results) -> None:
    """Whose it is, and what the server says of it."""
    who = "an anonymous member" if page.member_id is None else f"member {page.member_id}"
    fallback = f" — fallback: {page.fallback}" if page.fallback else ""
    console.print(f"{what} {who} (bundle {page.bundle_version}){fallback}", style="bold", highlight=False, markup=False)
    if found := _notes(page.info):
        console.print("; ".join(found), style="dim", highlight=False)


def _chance(title: Title) -> str:
    """Its probability; its score where it has none."""
    if title.probability is None:
        return f"{title.score:.2f}"
    return f"{title.probability:.1%}" if title.probability >= 0.001 else "<0.1%"


def _notes(info: Mapping[str, Any]) -> list[str]:
    """What the server says of the request's odd parts."""
    counts, found = info.get("counts", {}), []
    if cut := counts.get("truncated"):
        found.append(f"the oldest {_count(cut, 'event')} of the history left out")
    if late := counts.get("out_of_order"):
        found.append(f"{_count(late, 'event')} sorted into order")
    if unknown := info.get("unknown"):
        found.append(f"unknown to this bundle: {', '.join(unknown)}")
    elif number := counts.get("unknown_values"):
        found.append(f"{_count(number, 'value')} never seen in training")
    return found


def _count(number: int, thing: str) -> str:
    return f"{number:,} {thing}{'' if number == 1 else 's'}"


def history(console: Console, member: int, events: Iterable[tuple[str, str, str]]) -> None:
    """(day, action, name) of some events."""
    events = list(events)
    if not events:
        console.print(f"Member {member} is not in the data", style="bold", highlight=False)
        console.print()
        return
    table = Table.grid(padding=(0, 2))
    for day, action, name in events:
        table.add_row(Text(day, style="dim"), action, Text(name))
    console.print(f"What member {member} did last", style="bold", highlight=False)
    console.print(table, "")


def metrics(values: Mapping[str, float]) -> str:
    """One line of numbers."""
    return "  ".join(f"{name} {value:.4f}" for name, value in values.items())


def counts(of: Mapping[str, int]) -> str:
    """What a data set holds, in a line."""
    lost = of["events_without_title"]
    without = f"; {lost:,} events are about titles that titles.parquet lacks" if lost else ""
    return f"{of['events']:,} events of {of['members']:,} members about {of['titles']:,} titles{without}"


def evaluation(console: Console, run: Path, table: Mapping[str, Any]) -> None:
    """The model and the baselines, a line each."""
    lines = {name: table[name] for name in ("model", "model_without_request_fields")} | table["baselines"]
    _ranking(console, f"{run}: {table['part']} items of {table['members']:,} members, full catalogue", lines)


def reproduction(console: Console, result: Mapping[str, Any]) -> None:
    """Each seed, the model's mean and the baselines, a line each."""
    lines = {f"seed {run['seed']}, epoch {run['epoch']}": run for run in result["seeds"]}
    lines |= {"model": result["mean"]} | result["baselines"]
    _ranking(console, f"{result['dataset']}; test items, full catalogue", lines)
    if 0 < result["asked_again"] < result["members"]:
        first = (
            f"{_RANKED_BY.get(name, name)} {m['hr@10_first_time']:.4f} / {m['ndcg@10_first_time']:.4f}"
            for name, m in ({"model": result["mean"]} | result["baselines"]).items()
        )
        console.print(
            f"{result['asked_again']:,} of the {result['members']:,} test items had been seen before by their members, "
            f"and stand out. HR@10 / NDCG@10 of the others: {', '.join(first)}",
            soft_wrap=True, highlight=False,
        )  # fmt: skip


def _ranking(console: Console, title: str, lines: Mapping[str, Mapping[str, float]]) -> None:
    shown = Table(title=title, title_justify="left")
    shown.add_column("ranked by")
    for name in ("HR@10", "NDCG@10", "MRR", "coverage", "pop. bias", "novelty"):
        shown.add_column(name, justify="right")
    for name, m in lines.items():
        columns = ("hr@10", "ndcg@10", "mrr", "coverage", "popularity_bias", "novelty_bits")
        shown.add_row(
            _RANKED_BY.get(name, name),
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
        shown.add_row(_RANKED_BY.get(name, name), *("-" if (v := m[c]) is None else f"{v:.4f}" for c in columns))
    console.print(shown)


def alignment(console: Console, found: Mapping[str, Any]) -> None:
    """How far a new bundle's vectors are from those of the bundle it was aligned to."""
    if found["way"] == "as they are":
        console.print(
            f"vectors stay as they are: no map brings them nearer to bundle {found['bundle']}", soft_wrap=True
        )
    for name in ("titles", "members"):
        before, after = found["before"][name], found["after"][name]
        if before["common"]:
            console.print(
                f"{before['common']:,} {name} are in bundle {found['bundle']} too: mean cosine of their vectors "
                f"{before['cosine']:.3f}, aligned {after['cosine']:.3f}; distance {before['distance']:.3f}, aligned "
                f"{after['distance']:.3f} of their length",
                soft_wrap=True,
                highlight=False,
            )


def checks(console: Console, found: Sequence[Any]) -> None:
    """What `doctor` found, a line each, with the way to mend it below."""
    for check in found:
        mark = Text(f"{check.status:8}", style=_STATUS_STYLE[check.status])
        console.print(Text.assemble(mark, (f"{check.name}: ", "bold"), check.found))
        if check.fix:
            console.print(Text(f"         {check.fix}"), soft_wrap=True)


class _Clock(TimeRemainingColumn):
    """The time left; when it is done, the time it took."""

    def render(self, task: Task) -> Text:
        return Text.assemble(super().render(task), "" if task.finished else " left")


@contextmanager
def bar(console: Console, quiet: bool = False) -> Iterator[Progress]:
    """A progress bar whose tasks the caller adds; it vanishes when the work fails. Where space is short, the end of
    the description goes."""
    columns = (
        SpinnerColumn(table_column=Column(width=1)),
        BarColumn(bar_width=16, table_column=Column(width=16)),
        TextColumn("{task.percentage:>3.0f}%", table_column=Column(width=4)),
        _Clock(elapsed_when_finished=True, table_column=Column(width=12, no_wrap=True)),
        TextColumn("{task.description}", markup=False, table_column=Column(no_wrap=True, overflow="ellipsis", ratio=1)),
    )
    with Progress(
        *columns, console=console, disable=quiet or not console.is_terminal, refresh_per_second=4, expand=True
    ) as progress:
        try:
            yield progress
        except BaseException:
            progress.live.transient = True
            raise


@contextmanager
def training_bar(
    console: Console, epochs: int, last: dict[str, Any] | None = None, quiet: bool = False, of: str = ""
) -> Iterator[Callable[[Any], None]]:
    """A bar over all steps; yields what takes each training Progress. `last` gets what was reported last; `of` says
    what is trained."""
    last = {} if last is None else last
    with bar(console, quiet) as shown:
        task = shown.add_task("training", total=None)

        def on_progress(p: Any) -> None:
            last.update(epoch=p.epoch, losses=dict(p.losses))
            if p.validation:
                last["validation"] = dict(p.validation)
            parts = [f"{of}epoch {p.epoch + 1}/{epochs}"]
            if last.get("validation"):
                parts.append(f"ndcg@10 {last['validation']['ndcg@10']:.4f}")
            parts.append(f"{p.tokens_per_second:,.0f} tokens/s ({p.utilisation:.0%})")
            losses = [f"{name} {loss:.2f}" for name, loss in p.losses.items() if loss]
            text = "  ".join((*parts, *(["loss:", *losses] if losses else [])))
            shown.update(task, total=epochs * p.steps, completed=p.epoch * p.steps + p.step, description=text)

        yield on_progress
        shown.update(task, total=shown.tasks[0].completed)  # it may have stopped early


@contextmanager
def waiting(console: Console, what: str, quiet: bool = False) -> Iterator[None]:
    """A spinner for work whose length is not known."""
    if quiet:
        yield
        return
    with console.status(what):
        yield


def read_json(path: Path) -> Any:
    """The JSON value in a file; `-` reads stdin. Raises ValueError naming the file."""
    return _parse(_name(path), _text(path))


def read_events(path: Path) -> list[dict[str, Any]]:
    """Events of a JSON file: a list, an object with `events`, or one object a line; `-` reads stdin.

    Raises ValueError naming the file and where it is wrong.
    """
    name, text = _name(path), _text(path)
    lines = [line for line in text.splitlines() if line.strip()]
    try:
        value = _parse(name, text)
    except ValueError:
        if len(lines) < 2 or lines[0].lstrip()[0] != "{":
            raise
        value = [_parse(f"{name}, read as one JSON object a line: line {i}", line) for i, line in enumerate(lines, 1)]
    if isinstance(value, dict):
        value = value.get("events", [value] if "timestamp" in value else None)
    if not isinstance(value, list):
        raise ValueError(f'{name} holds no list of events; give [{{"timestamp": …, "what": {{…}}}}, …]')
    for i, event in enumerate(value):
        if not isinstance(event, dict):
            raise ValueError(f"{name}: event {i} is {reprlib.repr(event)}, not a JSON object")
    return value


def _name(path: Path) -> str:
    return "stdin" if str(path) == "-" else str(path)


def _text(path: Path) -> str:
    try:
        return (sys.stdin.buffer.read() if str(path) == "-" else path.read_bytes()).decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"{_name(path)} is not UTF-8 text: {error.reason} at byte {error.start}") from error


def _parse(name: str, text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{name} is not JSON: {error}") from error
    except RecursionError as error:
        raise ValueError(f"{name} is nested too deeply") from error
    except ValueError as error:
        raise ValueError(f"{name} holds a number of too many digits") from error


def read_context(text: str) -> dict[str, Any]:
    """The request's context. Raises ValueError."""
    value = _parse("--context", text)
    if not isinstance(value, dict):
        raise ValueError(f"--context is {value!r}; give a JSON object")
    return value
