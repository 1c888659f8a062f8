"""What `beyond_accuracy` found, as pictures and as text."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

_HEADS = ("titles", "new titles", "action_type", "entity_type", "duration", "genres", "rows")
_COLOURS = ("#1f5fa8", "#c8642a")  # as it is; with the temperature


def first(pieces: Mapping[str, Any]) -> tuple[str, Any]:
    """The first run or world of a result, which is the one drawn."""
    return next(iter(pieces.items()))


def draw_reliability(content: Mapping[str, Any], path: Path) -> Path:
    """A panel for each head: every pair of a moment and a value, in bins of as many predicted happenings each."""
    plt = _pyplot()
    panels = []
    for kind, title in (("ml-100k", "MovieLens-100K"), ("world", "simulated world")):
        if content[kind]:
            name, piece = first(content[kind])
            panels += [(f"{title}, {name}: {h}", piece["reliability"][h]) for h in _HEADS if h in piece["reliability"]]
    columns = 4
    figure, axes = plt.subplots(-(-len(panels) // columns), columns, figsize=(15, 3.9 * -(-len(panels) // columns)),
                                layout="constrained", squeeze=False)  # fmt: skip
    for axis in axes.flat[len(panels) :]:
        axis.remove()
    for axis, (title, found) in zip(axes.flat, panels, strict=False):
        for way, colour in zip(("after", "before"), _COLOURS[::-1], strict=True):
            bins = [b for b in found[way]["each"]["bins"] if b["happened"] > 0]
            x, y = ([b[key] for b in bins] for key in ("predicted", "happened"))
            below, above = ([abs(b["happened"] - b[key]) for b in bins] for key in ("from", "to"))
            label = "as it is" if way == "before" else f"temperature {found[way]['temperature']:.2f}"
            axis.errorbar(x, y, (below, above) if way == "before" else None, fmt="o", color=colour, label=label,
                          markersize=5 if way == "before" else 3.5, elinewidth=1)  # fmt: skip
        low = min(axis.get_xlim()[0], axis.get_ylim()[0])
        axis.set(xscale="log", yscale="log", xlabel="predicted", ylabel="happened")
        limits = [max(low, min(b["predicted"] for b in found["before"]["each"]["bins"]) / 2), 1.2]
        axis.plot(limits, limits, color="grey", linewidth=1, zorder=0)
        axis.set_title(f"{title}\n{found['moments']:,} moments, {found['values']:,} values", fontsize=10)
        axis.legend(frameon=False, fontsize=8, loc="upper left")
        axis.grid(alpha=0.3)
    figure.suptitle("How often what a head gives a probability happened; bars: 95 % intervals. Test events.")
    figure.savefig(path, dpi=100)
    plt.close(figure)
    return path


def draw_trade_off(content: Mapping[str, Any], path: Path) -> Path:
    """Quality against diversity, coverage and novelty, a point for each value of the dial."""
    plt = _pyplot()
    rows: list[tuple[str, str, str, str, list[dict[str, Any]]]] = []
    if content["ml-100k"]:
        lists, pages = (averaged(content["ml-100k"], of) for of in ("lists", "pages"))
        rows.append(("MovieLens-100K, lists of 10", "ndcg@10", "NDCG@10", "within_genres", lists))
        rows.append(("MovieLens-100K, pages", "page_hit", "pages with the next title", "within_rows_genres", pages))
    if content["world"]:
        lines = averaged(content["world"], "lines")
        rows.append(("simulated worlds, pages", "page_value", "true value of a page", "within_rows_genres", lines))
    figure, axes = plt.subplots(len(rows), 3, figsize=(14, 3.8 * len(rows)), layout="constrained", squeeze=False)
    for line, (title, quality, label, within, points) in zip(axes, rows, strict=True):
        across = {within: f"diversity {'within rows' if 'rows' in within else 'of a list'}, by genres",
                  "coverage": "share of the catalogue shown", "novelty_bits": "novelty, bits"}  # fmt: skip
        for axis, (key, name) in zip(line, across.items(), strict=True):
            x, y = [p[key] for p in points], [p[quality] for p in points]
            axis.plot(x, y, "o-", color=_COLOURS[0])
            for at in _apart(x, y):
                axis.annotate(f"{points[at]['diversity']:g}", (x[at], y[at]), textcoords="offset points",
                              xytext=(5, 5), fontsize=9)  # fmt: skip
            axis.set(xlabel=name, ylabel=label, title=title)
            axis.margins(0.12)
            axis.grid(alpha=0.3)
    figure.suptitle("What the dial `diversity` (at the points) gives and costs")
    figure.savefig(path, dpi=100)
    plt.close(figure)
    return path


def _apart(x: Sequence[float], y: Sequence[float]) -> list[int]:
    """Points whose labels do not cover that of one before them."""
    wide, high = (max(values) - min(values) or 1.0 for values in (x, y))
    found: list[int] = []
    for i in range(len(x)):
        if all(abs(x[i] - x[j]) > 0.06 * wide or abs(y[i] - y[j]) > 0.06 * high for j in found):
            found.append(i)
    return found


def _pyplot() -> Any:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt


def averaged(pieces: Mapping[str, Any], of: str) -> list[dict[str, Any]]:
    """Lines of the dial, each the mean over runs or worlds. `beside_0`: that of the differences; `apart`: in how many
    the interval of the difference excludes 0."""
    found = []
    for same in zip(*(piece[of] for piece in pieces.values()), strict=True):
        names = [name for name, value in same[0].items() if isinstance(value, float)]
        line: dict[str, Any] = {name: statistics.fmean(one[name] for one in same) for name in names}
        line["beside_0"] = statistics.fmean(one["beside_0"]["mean"] for one in same)
        line["apart"] = sum(one["beside_0"]["from"] > 0 or one["beside_0"]["to"] < 0 for one in same)
        found.append(line)
    return found


def markdown(found: Mapping[str, Any]) -> str:
    """The sections on calibration and on what is beyond accuracy, from the result's content."""
    parts = []
    for kind, title in (("ml-100k", "MovieLens-100K"), ("world", "Simulated worlds")):
        if found[kind]:
            parts += [f"**{title}**: {_names(found[kind])}. {_calibration_table(found[kind])}"]
    if found["world"]:
        parts.append(
            "The test event of a world is the last of its member's log, which ends a viewing more often than others "
            "do: action_type and duration are measured on such events alone."
        )
    head = (
        "Does what a head gives a probability happen that often? Test events; every pair of a moment and a value is a "
        "claim, in 15 bins of as many predicted happenings each. ECE: Σ over bins of |predicted − happened| a moment, "
        "up to 2 where one of several values happens; beside it what perfect probabilities would have by chance. "
        "Temperature: fitted on the validation events, by NLL; it is not served. `titles`: the softmax over the whole "
        "catalogue, as it was trained; `new titles`: over those the member has not seen, where the next title is one "
        "of them: what the client's `title.probability` is.\n\n![reliability](results/reliability.png)"
    )
    parts = [head, *parts]
    if found["ml-100k"]:
        name, piece = first(found["ml-100k"])
        parts += [_levels_text(name, piece["levels"])]
    parts.append(
        "What does variety cost? `diversity` in rows.json goes from 0, titles by score, to 1. Diversity within: mean "
        "over pairs of titles of a row (or list) of 1 − shared genres / genres of either; across: over pairs in "
        "different rows. The dial itself compares title vectors, not genres. Serendipity: members whose next title is "
        "listed and in neither list of ten by popularity and by item-item similarity. Gini: of how often titles are "
        "shown. A star: the 95 % interval of the difference from 0, over members, excludes 0 in every run.\n\n"
        "![trade-off](results/trade-off.png)"
    )
    rows, columns = found["pages"]
    if found["ml-100k"]:
        runs = len(found["ml-100k"])
        within = {"within": "within_genres", "serendipity": "serendipity", "coverage": "coverage", "Gini": "gini",
                  "novelty, bits": "novelty_bits"}  # fmt: skip
        lists = _trade_off_table(
            averaged(found["ml-100k"], "lists"), runs, {"NDCG@10": "ndcg@10", "HR@10": "hr@10"} | within
        )
        parts.append(f"MovieLens-100K, lists of ten, mean of {_count(runs, 'run')}:\n\n{lists}")
        table = _trade_off_table(
            averaged(found["ml-100k"], "pages"),
            runs,
            {"next title on the page": "page_hit", "in view": "visible_hit"} | _PAGE,
        )
        parts.append(f"MovieLens-100K, pages of {rows} × {columns} as served, 3 × 4 of them in view:\n\n{table}")
        parts.append(_latency_text(first(found["ml-100k"])[1]["latency"]))
    if found["world"]:
        worlds = found["world"]
        table = _trade_off_table(averaged(worlds, "lines"), len(worlds), {"true value": "page_value"} | _PAGE)
        oracle, chance = (
            statistics.fmean(w[k] for w in worlds.values()) for k in ("oracle_page_value", "random_page_value")
        )
        parts.append(
            f"Simulated worlds, pages of {rows} × {columns}, mean of {_count(len(worlds), 'world')}. True value: the "
            f"chance of an enjoyed play; the oracle's pages have {oracle:.3f}, random ones {chance:.3f}. Rows are the "
            "default ones, of titles that the member has not played; the pages of Rows and the page also have rows of "
            f"what was begun and what was played, and are worth more.\n\n{table}"
        )
    return "\n\n".join(parts) + "\n"


_PAGE = {"within rows": "within_rows_genres", "across rows": "across_rows_genres", "coverage": "coverage",
         "Gini": "gini", "novelty, bits": "novelty_bits"}  # fmt: skip


def _names(pieces: Mapping[str, Any]) -> str:
    return ", ".join(pieces)


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}{'' if number == 1 else 's'}"


def _table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *lines))


def _calibration_table(pieces: Mapping[str, Any]) -> str:
    """Means over runs or worlds, a line a head."""
    lines = []
    for head in _HEADS:
        reports = [piece["reliability"][head] for piece in pieces.values() if head in piece["reliability"]]
        if not reports:
            continue

        def mean(*keys: str, reports: list[Any] = reports) -> float:
            values = []
            for value in reports:
                for key in keys:
                    value = value[key]
                values.append(value)
            return statistics.fmean(values)

        top = ("before", "top", "ece") if "top" in reports[0]["before"] else ()
        lines.append([
            head, f"{mean('moments'):,.0f}", f"{mean('before', 'nll'):.3f}", f"{mean('after', 'nll'):.3f}",
            f"{mean('before', 'brier'):.3f}", f"{mean('after', 'brier'):.3f}",
            f"{mean('before', 'each', 'ece'):.3f}", f"{mean('after', 'each', 'ece'):.3f}",
            f"{mean('before', 'each', 'ece_if_perfect'):.3f}",
            f"{mean(*top):.3f} ({mean('before', 'top', 'ece_if_perfect'):.3f})" if top else "-",
            f"{mean('after', 'temperature'):.2f}",
        ])  # fmt: skip
    head = ["head", "moments", "NLL", "with temperature", "Brier", "with temperature", "ECE", "with temperature",
            "ECE by chance", "ECE of the top value (by chance)", "temperature"]  # fmt: skip
    off = [f"{line[0]} ({line[6]} against {line[8]})" for line in lines if float(line[6]) > 1.5 * float(line[8])]
    verdict = f"ECE above 1.5 times what chance gives: {', '.join(off) or 'none'}."
    return f"Means:\n\n{_table(head, lines)}\n\n{verdict}"


def _levels_text(name: str, found: Mapping[str, Any]) -> str:
    lines = [
        [f"{c['titles']:,}", f"{c['milliseconds']:.2f}", f"{c['off_mean']:.3f}", f"{c['off_greatest']:.3f}",
         f"{c['candidates_only_off_mean']:.2f}", f"{c['candidates_only_off_greatest']:.2f}"]
        for c in found["catalogues"]
    ]  # fmt: skip
    head = ["titles", "ms", "off by, nats", "at most", "candidates alone: off by", "at most"]
    return (
        "Scores alone do not mean the same on every page: the log normaliser that makes them probabilities is "
        f"{found['mean']:.1f} ± {found['deviation']:.1f} over the members ({name}; {found['least']:.1f} to "
        f"{found['greatest']:.1f}). A page carries its own. Time and error of one (beyond the first line titles "
        f"are drawn from a Gaussian fitted to the trained ones; above 20,000 titles {found['sample']:,} sampled titles "
        f"stand for those that are no candidates):\n\n{_table(head, lines)}"
    )


def _latency_text(found: Mapping[str, Any]) -> str:
    lines = [[f"{x['diversity']:g}", f"{x['page_ms']:.1f}", f"{x['assemble_ms']:.1f}"] for x in found["lines"]]
    return (
        f"Milliseconds of a page of {found['rows']} × {found['titles']} in one process, median of "
        f"{found['requests']} requests:\n\n{_table(['diversity', 'page', 'of it assembly'], lines)}"
    )


def _trade_off_table(lines: Sequence[Mapping[str, Any]], runs: int, columns: Mapping[str, str]) -> str:
    """The first column is the one that `beside_0` is about."""
    found = []
    for line in lines:
        cells = [f"{line[key]:.2f}" if key == "novelty_bits" else f"{line[key]:.3f}" for key in columns.values()]
        cells[0] += "*" if line["apart"] == runs else ""
        found.append([f"{line['diversity']:g}", *cells])
    return _table(["diversity", *columns], found)
