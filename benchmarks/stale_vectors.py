"""Does it pay to train on the next few titles, and not on the next alone, where member vectors are served stale?

    python -m frontrow.benchmarks.stale_vectors [--seed 101 …] [--small]      → results/stale-vectors.json

SIMULATED world. Models are trained on its log but for the last days and asked at visits of those days, with histories
as they were 0, 24 or 48 hours before, by what a batch job would have computed, that knows nothing of the request or
takes its own time for that of the request, so that the model knows how long ago the last event was. Ranked
are the titles that are out, available and not played before the visit; right is the first such title that was played in
it. Value is the true chance of an enjoyed play from a list of the best ten.
Multi-token prediction: `half_life_hours` of the model's settings. The title loss is −Σ wᵢ log p(yᵢ) / Σ wᵢ over the
next 16 events, wᵢ = 2^(−(tᵢ − t) / half life), of one head, at no cost in serving.
Shape letters: T events, N titles, V visits.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from itertools import product
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import pyarrow.compute as pc
import torch

from ..foundation.encoding import bucket, offset_tokens
from ..foundation.heads import AHEAD
from ..foundation.model import FoundationModel
from ..foundation.schema import ABSENT, default_schema
from ..training.data import Dataset, load_dataset, read_table, write_dataset
from ..training.recipe import recipe, size_for
from ..training.train import train
from ..training.world import World
from ..training.world_log import WorldConfig
from ..training.world_population import DAY, Visits
from .command import command, seed_of
from .paired import gain, over_worlds
from .provenance import provenance, write_result
from .world_model import CONFIG, EPOCHS, EVALUATION_SEEDS, world_of

RUNS = Path("runs/stale-vectors")
SMALL = WorldConfig(members=800, titles=800, days=40)
HELD_OUT_DAYS = 10  # the last ones: nothing of them is trained on
STALE_HOURS = (0, 24, 48)
HALF_LIVES = {"next event": 0.0, "half-life 1 h": 1.0, "half-life 24 h": 24.0}  # 0: the next event alone
VISITS, LIST = 4000, 10
_CHUNK = 256

Told = Literal["nothing", "gap", "request"]


def datasets(world: World, folder: Path) -> tuple[Dataset, Dataset]:
    """(what is trained on, everything): the same members, titles and vocabularies."""
    world.write(folder / "all")
    events, titles = (read_table(folder / "all" / name) for name in ("events.parquet", "titles.parquet"))
    early = events.filter(pc.less(events["timestamp"], world.end - HELD_OUT_DAYS * DAY))  # type: ignore[attr-defined]
    write_dataset(folder / "early", early, titles)
    whole, trained = (load_dataset(folder / name, default_schema()) for name in ("all", "early"))
    for name, vocabulary in whole.vocabularies.items():
        assert vocabulary.values == trained.vocabularies[name].values, f"{name}: the last days have values of their own"
    return trained, whole


def trained_model(data: Dataset, half_life_hours: float, epochs: int, run_dir: Path) -> FoundationModel:
    """The recipe with that loss, after its last epoch: the validation item, often the title just played, picks none."""
    _, config = recipe(data.schema, size_for(len(data.events.ids)))
    model_config = replace(config.model, half_life_hours=half_life_hours)
    model = train(data, replace(config, epochs=epochs, patience=epochs, model=model_config), run_dir, resume=True)
    model.load_state_dict(torch.load(run_dir / "checkpoint.pt", weights_only=True)["model"])
    return model.eval()


def asked_visits(world: World, data: Dataset) -> tuple[np.ndarray, np.ndarray]:
    """(indices int64 [V] of visits, title int64 [V] that each is asked for): visits of the held-out days whose member
    had done something before the stalest vector, and the first title played in it that they had never played."""
    plays = world.plays
    key = plays.member * len(world.titles) + plays.title
    new = np.zeros(len(plays), bool)
    new[np.unique(key, return_index=True)[1]] = True  # plays are in order of (member, time)
    first = np.unique(plays.visit[new], return_index=True)
    visit, title = first[0], plays.title[new][first[1]].astype(np.int64)
    oldest = world.end - HELD_OUT_DAYS * DAY + max(STALE_HOURS) * 3600
    known = history_ends(data, world.visits.take(visit), max(STALE_HOURS))
    starts = data.events.offsets[:-1][member_rows(data, world.visits.member[visit])]
    keep = np.flatnonzero((world.visits.time[visit] >= oldest) & (known > starts))
    keep = np.sort(np.random.default_rng(world.config.seed).permutation(keep)[:VISITS])
    return visit[keep], title[keep]


def member_rows(data: Dataset, member: np.ndarray) -> np.ndarray:
    """Index int64 [V] into the data's members; a member without events stands for whom comes after."""
    return np.minimum(np.searchsorted(data.member_ids, member), len(data) - 1)


def history_ends(data: Dataset, visits: Visits, stale_hours: int) -> np.ndarray:
    """int64 [V]: where in `data.events` each visit's history ends, as it was that many hours before it."""
    span = np.int64(1) << 34
    member = np.repeat(data.member_ids, np.diff(data.events.offsets))
    until = visits.time - stale_hours * 3600
    return np.searchsorted(member * span + data.events.timestamp, visits.member * span + until)


@torch.no_grad()
def member_vectors(model: FoundationModel, data: Dataset, visits: Visits, stale_hours: int, told: Told) -> np.ndarray:
    """float32 [V, D], of histories as they were. told: `nothing` of the request; the `gap` between the last event and
    the time at which the vector is made; or the `request`, time and device of the event that the visit led to, which a
    page made at the visit would know but for a moment's difference."""
    schema, ends, device = data.schema, history_ends(data, visits, stale_hours), next(model.parameters()).device
    starts = np.maximum(data.events.offsets[:-1][member_rows(data, visits.member)], ends - model.config.max_events + 1)
    tokens = offset_tokens(schema, data.events.ids, data.events.offsets)
    canvas = range(*schema.spans["canvas"])  # tells the row that the play came from
    unknown = np.array([c for c in schema.request_columns if told != "request" or c in canvas])
    gap = next(f for f in schema.fields if f.kind == "gap")
    since = bucket(gap, visits.time - stale_hours * 3600.0 - data.events.timestamp[ends - 1])
    found = []
    for piece in np.split(np.arange(len(visits)), range(_CHUNK, len(visits), _CHUNK)):
        rows = np.concatenate([np.arange(a, b + 1) for a, b in zip(starts[piece], ends[piece], strict=True)])
        offsets = np.concatenate([[0], np.cumsum(ends[piece] + 1 - starts[piece])])
        asked = tokens[np.minimum(rows, len(tokens) - 1)]
        last = offsets[1:] - 1
        # The row after a history may be another member's: only the request's columns are ever taken from it.
        asked[np.ix_(last, schema.action_columns)] = data.events.ids[ends[piece] - 1][:, schema.action_columns]
        asked[np.ix_(last, unknown)] = ABSENT
        if told == "gap":
            asked[last, schema.spans[gap.name][0]] = since[piece]
        vectors, _ = model.encode(torch.from_numpy(asked).to(device), torch.from_numpy(offsets).to(device))
        found.append(vectors.cpu().numpy())
    return np.concatenate(found)


def measured(world: World, model: FoundationModel, data: Dataset, asked: tuple[np.ndarray, np.ndarray]) -> dict:
    """{how stale: {"ranks": [V], "value": [V]}} of the visits and titles asked for."""
    visits, titles = world.visits.take(asked[0]), asked[1]
    with torch.no_grad():
        title_vectors = model.title_vectors().cpu().numpy()
    found = {}
    served: list[tuple[int, Told]] = [(0, "request"), *product(STALE_HOURS, get_args(Told)[:2])]
    for stale_hours, told in served:
        vectors = member_vectors(model, data, visits, stale_hours, told)
        ranks, shown = [], []
        for piece in np.split(np.arange(len(visits)), range(_CHUNK, len(visits), _CHUNK)):
            some = visits.take(piece)
            scores = np.where(eligible(world, some), vectors[piece] @ title_vectors.T, -np.inf)
            own = scores[np.arange(len(piece)), titles[piece]][:, None]
            before = (scores > own) | ((scores == own) & (np.arange(scores.shape[1]) < titles[piece][:, None]))
            ranks.append(before.sum(1))
            shown.append(np.argsort(-scores, axis=1, kind="stable")[:, :LIST])
        value = world.page_value(visits, np.concatenate(shown)[:, None])
        name = f"{stale_hours} h" + ("" if told == "nothing" else f", {told} told")
        found[name] = {"ranks": np.concatenate(ranks).tolist(), "value": value.round(6).tolist()}
    return found


def eligible(world: World, visits: Visits) -> np.ndarray:
    """bool [V, N]: out, available in the visit's locale, and not played before."""
    titles, memory = world.titles, world.memory(visits)
    out = titles.release[None] <= visits.time[:, None]
    return out & titles.available[visits.locale] & (memory.progress == 0)


MEASURES: dict[str, Callable[[dict], np.ndarray]] = {
    "hr@10": lambda found: (np.array(found["ranks"]) < LIST).astype(float),
    "ndcg@10": lambda found: gain(np.array(found["ranks"])),
    "value": lambda found: np.array(found["value"]),
}


def summary(worlds: Sequence[dict]) -> dict[str, Any]:
    """Means of every method and staleness over the visits of all worlds, and differences to the next event alone."""
    members = [np.array(w["members"]) for w in worlds]
    plain = next(iter(HALF_LIVES))

    def cell(method: str, stale: str, measure: str) -> dict[str, Any]:
        ours, theirs = ([MEASURES[measure](w["methods"][m][stale]) for w in worlds] for m in (method, plain))
        mean = {"mean": float(np.concatenate(ours).mean())}
        if method == plain:
            return mean
        each = [a - b for a, b in zip(ours, theirs, strict=True)]
        return mean | {
            "difference": over_worlds(each, members),
            "by_world": [float(d.mean()) for d in each],
        }

    table = {
        method: {stale: {m: cell(method, stale, m) for m in MEASURES} for stale in worlds[0]["methods"][plain]}
        for method in HALF_LIVES
    }
    return {
        "worlds": [w["seed"] for w in worlds],
        "visits": sum(map(len, members)),
        "members": sum(len(np.unique(m)) for m in members),
        "methods": table,
    }


def markdown(found: dict[str, Any]) -> str:
    """The section's text, from the result alone."""
    size = found["world"]
    lines = [
        f"Simulated, worlds {', '.join(map(str, found['worlds']))}, of {size['members']:,} members and "
        f"{size['titles']:,} titles each: {found['visits']:,} visits of the last {found['held_out_days']} days, of "
        "which nothing was trained on. The vector is as old as the column says, and told nothing of the request unless "
        "said (gap: since the last event, when the vector was made). Ranked are titles that are out, available and not "
        "played before. In brackets: the difference to training on the next event alone, with a 95 % interval over "
        "members and worlds.",
        "",
    ]
    for measure, title in (("ndcg@10", "NDCG@10 of the next new title"), ("hr@10", "HR@10 of it"),
                           ("value", "chance of an enjoyed play from a list of ten")):  # fmt: skip
        stale = list(next(iter(found["methods"].values())))
        lines += [f"| {title} | {' | '.join(stale)} |", f"|{'---|' * (1 + len(stale))}"]
        for method, row in found["methods"].items():
            cells = []
            for of in (row[s][measure] for s in stale):
                d = of.get("difference")
                cells.append(f"{of['mean']:.4f}" + (f" ({d['from']:+.4f} to {d['to']:+.4f})" if d else ""))
            lines.append(f"| {method} | {' | '.join(cells)} |")
        lines.append("")
    return "\n".join(lines)


def main(seeds: Sequence[int], small: bool) -> None:
    size = SMALL if small else CONFIG
    command = f"python -m frontrow.benchmarks.stale_vectors --seed {' '.join(map(str, seeds))}"
    content: dict[str, Any] = {}
    source, worlds = provenance(command), []
    for seed in seeds:
        world = world_of(seed, size)
        folder = RUNS / f"{size.members}-members-{seed}"
        trained, whole = datasets(world, folder)
        asked = asked_visits(world, whole)
        members = world.visits.member[asked[0]].tolist()
        entry: dict[str, Any] = {"seed": seed, "members": members, "methods": {}}
        for method, half_life in HALF_LIVES.items():
            file = folder / trained.fingerprint[:12] / method.replace(" ", "-") / "measured.json"
            if not file.is_file():
                model = trained_model(trained, half_life, EPOCHS, file.parent)
                file.write_text(json.dumps(measured(world, model, whole, asked)), "utf-8")
            entry["methods"][method] = json.loads(file.read_text("utf-8"))
            print(seed, method, {s: {m: round(float(f(x).mean()), 4) for m, f in MEASURES.items()}
                                 for s, x in entry["methods"][method].items()}, flush=True)  # fmt: skip
        worlds.append(entry)
        about = {"simulated": True, "world": asdict(size), "epochs": EPOCHS, "events_ahead": AHEAD,
                 "held_out_days": HELD_OUT_DAYS, "stale_hours": STALE_HOURS}  # fmt: skip
        content = {**about, **summary(worlds), **source}
        if small:
            (RUNS / "small.json").write_text(json.dumps(content, indent=1) + "\n", "utf-8")
        else:
            write_result("stale-vectors", content)
    print(markdown(content))


if __name__ == "__main__":
    with command("stale_vectors", __doc__) as parser:
        parser.add_argument("--seed", nargs="+", type=seed_of, default=list(EVALUATION_SEEDS))
        parser.add_argument(
            "--small", action="store_true", help="a small world, to try out; result in runs/stale-vectors"
        )
        given = parser.parse_args()
        main(given.seed, given.small)
