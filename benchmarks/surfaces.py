"""What does the member add to a search, and to titles like another? And how long does the look-up of names take?

    python -m frontrow.benchmarks.surfaces [search|more_like_this|time …] [--seed 101 …] [--run FOLDER]
    → results/surfaces.json

search: in the SIMULATED world (its seeds' models are trained first, some minutes each, and kept in runs/world). On the
day after the log ends every member searches once as those of the log did, for a title the world draws; the typing is
simulated too, as the first letters of the title's name without its article. Names are made of few words, so that many
titles share what is typed. All rankings are of the candidates that search serves: lexical alone puts the smaller id
first where names fit alike, popularity the more popular title, the model by the member's score.
more_like_this: MovieLens-100K, leave one out: the member's last title but one asks, the last one is to be found, with a
finished run's model. All rankings but the last are of the 100 nearest titles that the member had not seen.
time: of one look-up among 100,000 made-up names.
Shape letters: B members or searches, N titles, K candidates.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..foundation.encoding import encode_request, serving_tokens
from ..foundation.model import FoundationModel
from ..serving.homepage import CANDIDATES
from ..serving.search import TIERS, TitleSearch, plain, without_article, words_of
from ..serving.surfaces import NEIGHBOURS
from ..training.batches import Part, evaluated_members, target_positions, training_events
from ..training.data import Dataset
from ..training.evaluate import model_scorer
from ..training.runs import load_run
from ..training.world import World
from ..training.world_population import DAY, DEVICES, LOCALES
from .command import command, seed_of
from .paired import over_worlds
from .provenance import RESULTS, provenance, write_result
from .reproduce import check_ml_100k, ml_100k_runs
from .world_model import EVALUATION_SEEDS, trained_on, world_of

TYPED = (3, 8)
SHOWN = 20
NAMES, ASKED = 100_000, 1_000
NOWHERE = 10**9  # the rank of what a list does not hold
_AT_ONCE = 256


# --- Search in the simulated world ---


def searches(world: World, data: Dataset) -> tuple[np.ndarray, np.ndarray, list[dict[str, Any]]]:
    """(member index int64 [B], title index int64 [B], context [B] without the canvas) of one search of each member on
    the day after the log ends, on the device and with the locale of their last visit."""
    rng = np.random.default_rng(world.config.seed)
    last = np.append(np.flatnonzero(np.diff(world.visits.member)), len(world.visits) - 1)
    visits = world.visits.take(last)
    members = visits.member
    when = world.end + rng.integers(0, DAY, len(members))
    device, locale = [DEVICES[d] for d in visits.device], [LOCALES[i] for i in visits.locale]
    titles = world.searched(world.visit(members, when, device, locale), rng)
    at = np.searchsorted(data.member_ids, members)
    known = (titles >= 0) & (data.member_ids[np.minimum(at, len(data) - 1)] == members)
    contexts = [{"timestamp": int(when[v]), "device": device[v], "locale": locale[v]} for v in np.flatnonzero(known)]
    return at[known], titles[known].astype(np.int64), contexts


@torch.inference_mode()
def member_vectors(
    model: FoundationModel, data: Dataset, members: np.ndarray, contexts: list[dict[str, Any]]
) -> np.ndarray:
    """float32 [B, D], from the whole history and the request's own context."""
    longest, vectors = model.config.max_events, []
    for begin in range(0, len(members), _AT_ONCE):
        tokens = []
        for member, context in zip(members[begin : begin + _AT_ONCE], contexts[begin : begin + _AT_ONCE], strict=True):
            history, now = data.events.member(int(member)), float(context["timestamp"])
            asks = encode_request(data.schema, data.vocabularies, context, now, int(history.timestamp[-1]))
            tokens.append(serving_tokens(data.schema, history.ids[-longest - 1 :], asks)[-longest - 1 :])
        offsets = np.cumsum([0, *map(len, tokens)])
        vectors.append(model.encode(torch.from_numpy(np.concatenate(tokens)), torch.from_numpy(offsets))[0])
    return torch.cat(vectors).float().numpy()


def rank_in(titles: np.ndarray, order: np.ndarray, target: int) -> int:
    """Place from 0 of a title in titles[order], NOWHERE if it is not there."""
    place = np.flatnonzero(titles[order] == target)
    return int(place[0]) if len(place) else NOWHERE


def search_ranks(world: World) -> dict[int, dict[str, np.ndarray]]:
    """By letters typed: ranks int64 [B] of the title looked for by each way, and how many titles were found."""
    model, data = trained_on(world)
    members, targets, contexts = searches(world, data)
    with torch.inference_mode():
        vectors = model.title_vectors().float().numpy()
    told = member_vectors(model, data, members, [c | {"canvas": "search"} for c in contexts]) @ vectors.T
    untold = member_vectors(model, data, members, contexts) @ vectors.T
    plays = np.bincount(data.title_indices(), minlength=len(data.titles))
    popular = np.lexsort((np.arange(len(plays)), -plays))
    names = TitleSearch(data.titles.names, popular)
    typed = [" ".join(without_article(words_of(plain(data.titles.names[t])))) for t in targets]
    found: dict[int, dict[str, np.ndarray]] = {}
    for length in TYPED:
        ranks: dict[str, list[int]] = {}
        for b, (query, target) in enumerate(zip(typed, targets, strict=True)):
            titles, tiers = names.find(query[:length], CANDIDATES, SHOWN)
            orders = {
                "lexical": np.lexsort((titles, tiers)),
                "popularity": np.lexsort((titles, -plays[titles], tiers)),
                "model": np.lexsort((titles, -told[b, titles], tiers)),
                "model, not told the canvas": np.lexsort((titles, -untold[b, titles], tiers)),
            }
            for name, order in orders.items():
                ranks.setdefault(name, []).append(rank_in(titles, order, int(target)))
            ranks.setdefault("titles found", []).append(len(titles))
        found[length] = {name: np.array(of) for name, of in ranks.items()}
    return found


def measures(ranks: np.ndarray) -> dict[str, float]:
    """HR@10 and MRR of ranks int64 [B]."""
    return {"hr@10": float((ranks < 10).mean()), "mrr": float(reciprocal(ranks).mean())}


def reciprocal(ranks: np.ndarray) -> np.ndarray:
    return np.where(ranks < NOWHERE, 1.0 / (ranks + 1.0), 0.0)


def difference(ours: Sequence[np.ndarray], theirs: Sequence[np.ndarray]) -> dict[str, float]:
    """Of MRR, one by one, of each world: the mean and its 95 % interval over members, each of whom asks once, and
    worlds."""
    each = [reciprocal(a) - reciprocal(b) for a, b in zip(ours, theirs, strict=True)]
    found = over_worlds(each, [np.arange(len(values)) for values in each])
    return {"mrr": found.pop("mean"), **found}


def search_table(by_seed: dict[int, dict[int, dict[str, np.ndarray]]]) -> dict[str, Any]:
    """The result's content of the seeds so far."""
    lengths = []
    for length in TYPED:
        of = [found[length] for found in by_seed.values()]
        together = {name: np.concatenate([ranks[name] for ranks in of]) for name in of[0]}
        count = together.pop("titles found")
        lengths.append({
            "letters": length,
            "titles_found": float(np.median(count)),
            "ranked_by": {name: measures(ranks) for name, ranks in together.items()},
            "mrr_by_seed": {name: [measures(ranks[name])["mrr"] for ranks in of] for name in together},
            "model - popularity": difference(*([f[name] for f in of] for name in ("model", "popularity"))),
            "told - not told the canvas": difference(
                *([f[name] for f in of] for name in ("model", "model, not told the canvas"))
            ),
        })  # fmt: skip
    seeds = list(by_seed)
    return {"simulated": True, "seeds": seeds, "searches": sum(len(f[TYPED[0]]["model"]) for f in by_seed.values()),
            "lengths": lengths}  # fmt: skip


# --- More like this on MovieLens ---


def last_and_next(data: Dataset, members: np.ndarray, part: Part) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(title int64 [B] that asks, the one played next, bool [B, N] what had been seen)."""
    index, positions = data.title_indices(), target_positions(data, members, part)
    seen = np.zeros((len(members), len(data.titles)), bool)
    for row, (start, stop) in enumerate(zip(data.events.offsets[members], positions, strict=True)):
        seen[row, index[start:stop]] = True
    return index[positions - 1], index[positions], seen


def nearest(similarity: np.ndarray, count: int) -> np.ndarray:
    """Title indices int64 [B, K] of the highest similarity [B, N], ties to the smaller id."""
    return np.argsort(-similarity, axis=1, kind="stable")[:, :count]


def shared_genres(data: Dataset, shown: np.ndarray, asked: np.ndarray) -> float:
    """Mean over members of the share (Jaccard) of genres that the first ten titles have in common with the asking."""
    lists: Any = data.titles.metadata["genres"]
    names = sorted({g for several in lists for g in several or ()})
    has = np.array([[g in (several or ()) for g in names] for several in lists])
    one, other = has[shown[:, :10]], has[asked][:, None]
    return float(((one & other).sum(-1) / np.maximum((one | other).sum(-1), 1)).mean())


def like_this(run: Path) -> dict[str, Any]:
    """The result's content: the test item's rankings, and what more or fewer neighbours do on the validation item."""
    model, data = load_run(run)
    members = evaluated_members(data)
    with torch.inference_mode():
        vectors = model.title_vectors().float().numpy()
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    index = data.title_indices()
    plays = np.bincount(index[training_events(data) & (index >= 0)], minlength=len(vectors)).astype(float)

    def scores(part: Part, with_request: bool) -> np.ndarray:
        score = model_scorer(model, data, part, with_request)
        return np.concatenate([score(members[i : i + _AT_ONCE]) for i in range(0, len(members), _AT_ONCE)])

    def ranked(part: Part, near: np.ndarray, by: np.ndarray) -> dict[str, float]:
        asked, target, _ = last_and_next(data, members, part)
        order = np.lexsort((near, -np.take_along_axis(by, near, 1)))
        shown = np.take_along_axis(near, order, 1)
        ranks = np.where((shown == target[:, None]).any(1), (shown == target[:, None]).argmax(1), NOWHERE)
        return measures(ranks) | {"genres_shared": shared_genres(data, shown, asked), "ranks": ranks}  # type: ignore[dict-item]

    asked, _, seen = last_and_next(data, members, "test")
    dot, cosine = (np.where(seen, -np.inf, v[asked] @ v.T) for v in (vectors, unit))
    near, popularity = nearest(dot, NEIGHBOURS), np.broadcast_to(plays, dot.shape)
    everything = np.broadcast_to(np.arange(len(vectors)), dot.shape)
    told = np.where(seen, -np.inf, scores("test", True))
    table = {
        "similarity": ranked("test", near, dot),
        "similarity, cosine": ranked("test", nearest(cosine, NEIGHBOURS), cosine),
        "popularity": ranked("test", near, popularity),
        "model": ranked("test", near, told),
        "model, not told when": ranked("test", near, scores("test", False)),
        "model, all titles": ranked("test", everything, told),
    }
    ranks = {name: row.pop("ranks") for name, row in table.items()}
    asked, _, seen = last_and_next(data, members, "validation")
    dot, told = np.where(seen, -np.inf, vectors[asked] @ vectors.T), scores("validation", True)
    choice = {str(k): ranked("validation", nearest(dot, k), told) for k in (20, 50, NEIGHBOURS, 200, 400)}
    for row in choice.values():
        del row["ranks"]
    return {
        "data": "MovieLens-100K, test items of members with three events",
        "run": str(run),
        "members": len(members),
        "neighbours": NEIGHBOURS,
        "ranked_by": table,
        "model - similarity": difference([ranks["model"]], [ranks["similarity"]]),  # type: ignore[list-item]
        "model - popularity": difference([ranks["model"]], [ranks["popularity"]]),  # type: ignore[list-item]
        "similarity - cosine": difference([ranks["similarity"]], [ranks["similarity, cosine"]]),  # type: ignore[list-item]
        "validation_by_neighbours": choice,
    }


# --- The time of a look-up ---


def made_up_names(count: int, rng: np.random.Generator) -> list[str]:
    """Names of one to five words, of which few are frequent and most are rare."""
    parts = ["ka", "ri", "mo", "ten", "sha", "dow", "el", "lin", "gar", "ver", "st", "on", "ing", "er", "al", "pra"]
    words = list(dict.fromkeys("".join(rng.choice(parts, rng.integers(1, 6))) for _ in range(count // 2)))
    share = 1 / np.arange(10, len(words) + 10)
    share /= share.sum()
    chosen = [rng.choice(len(words), rng.integers(1, 6), p=share) for _ in range(count)]
    return [" ".join(["The"] * (i % 3 == 0) + [words[w].title() for w in some]) for i, some in enumerate(chosen)]


def look_ups() -> dict[str, Any]:
    """Milliseconds of `TitleSearch.find` as search calls it, by what is typed; own: the process's, which others on the
    same cores do not lengthen by waits."""
    rng = np.random.default_rng(0)
    names = made_up_names(NAMES, rng)
    started = time.perf_counter()
    search = TitleSearch(names, rng.permutation(NAMES))
    built = time.perf_counter() - started
    asked = [" ".join(without_article(words_of(plain(names[t])))) for t in rng.integers(0, NAMES, ASKED)]

    def mistyped(name: str) -> str:
        at = int(rng.integers(0, len(name)))
        return name[:at] + "x" + name[at + 1 :]

    kinds: dict[str, Callable[[str], str]] = {f"first {n} letters": lambda name, n=n: name[:n] for n in TYPED} | {
        "whole name": lambda name: name,
        "whole name, one letter wrong": mistyped,
    }
    found = {}
    for kind, of in kinds.items():
        times, own = [], []
        for query in map(of, asked):
            started, worked = time.perf_counter(), time.process_time()
            search.find(query, CANDIDATES, SHOWN)
            own.append((time.process_time() - worked) * 1000)
            times.append((time.perf_counter() - started) * 1000)
        found[kind] = {f"p{q}": round(float(np.percentile(times, q)), 3) for q in (50, 95, 99)}
        found[kind] |= {f"own_p{q}": round(float(np.percentile(own, q)), 3) for q in (50, 95)}
    return {"names": NAMES, "queries": ASKED, "seconds_to_build": round(built, 2), "milliseconds": found}


def markdown(found: dict[str, Any]) -> str:
    """The section of a report, from a result's content alone."""
    parts = []
    if search := found.get("search"):
        seeds = ", ".join(map(str, search["seeds"]))
        parts.append(
            f"**Search**, simulated world, seeds {seeds}: {search['searches']:,} searches on the day after the log "
            "ends, typing simulated as the first letters of the title's name. Candidates and lexical tiers "
            f"({', '.join(TIERS)}) are the same in each line, only the order within a tier differs.\n"
        )
        parts.append(
            "| letters typed | titles found (median) | order within a tier | HR@10 | MRR |\n|---|---|---|---|---|"
        )
        for row in search["lengths"]:
            for name, m in row["ranked_by"].items():
                parts.append(
                    f"| {row['letters']} | {row['titles_found']:.0f} | {name if name != 'lexical' else 'none (id)'} | "
                    f"{m['hr@10']:.3f} | {m['mrr']:.3f} |"
                )
        for words, key in (("model ahead of popularity", "model - popularity"),
                           ("what the canvas adds", "told - not told the canvas")):  # fmt: skip
            gains = "; ".join(f"{row['letters']} letters {_interval(row[key])}" for row in search["lengths"])
            parts.append(f"\nMRR, {words}, with its 95 % interval: {gains}.")
    if alike := found.get("more_like_this"):
        parts.append(
            f"\n**More like this**, {alike['data']} ({alike['members']}): the title played before asks, the next is to "
            f"be found among the {alike['neighbours']} nearest unseen titles.\n\n"
            "| order | HR@10 | MRR | genres shared with the title |\n|---|---|---|---|"
        )
        parts += [f"| {name} | {m['hr@10']:.3f} | {m['mrr']:.3f} | {m['genres_shared']:.3f} |"
                  for name, m in alike["ranked_by"].items()]  # fmt: skip
        parts.append(
            f"\nMRR: model − similarity {_interval(alike['model - similarity'])}, model − "
            f"popularity {_interval(alike['model - popularity'])}, dot product − cosine "
            f"{_interval(alike['similarity - cosine'])}. "
            "By the number of neighbours, validation items (HR@10 of the model's order, genres shared): "
            + "; ".join(
                f"{k}: {m['hr@10']:.3f}, {m['genres_shared']:.3f}" for k, m in alike["validation_by_neighbours"].items()
            )
            + "."
        )
    if clock := found.get("time"):
        parts.append(
            f"\n**Look-up of names**, {clock['names']:,} titles of made-up names, one thread, built in "
            f"{clock['seconds_to_build']} s; milliseconds on the clock, and of the process alone (the cores are "
            "shared):\n\n| typed | p50 | p95 | p99 | process p50 | process p95 |\n|---|---|---|---|---|---|"
        )
        columns = ("p50", "p95", "p99", "own_p50", "own_p95")
        parts += [f"| {kind} | {' | '.join(f'{m[c]:.2f}' for c in columns)} |"
                  for kind, m in clock["milliseconds"].items()]  # fmt: skip
    return "\n".join(parts)


def _interval(of: dict[str, float]) -> str:
    return f"{of['mrr']:+.3f} ({of['from']:+.3f} to {of['to']:+.3f})"


def main(parts: list[str], seeds: list[int], run: Path) -> None:
    file = RESULTS / "surfaces.json"
    found: dict[str, Any] = json.loads(file.read_text("utf-8")) if file.is_file() else {}

    def keep(part: str, content: dict[str, Any], arguments: str = "") -> None:
        command = "python -m frontrow.benchmarks.surfaces"
        found[part] = content | provenance(f"{command} {part}{arguments}")
        write_result("surfaces", found | provenance(command))

    if "time" in parts:
        keep("time", look_ups())
    if "more_like_this" in parts:
        check_ml_100k(run)
        keep("more_like_this", like_this(run), f" --run {run}")
    if "search" in parts:
        by_seed = {}
        for seed in seeds:
            by_seed[seed] = search_ranks(world_of(seed))
            keep("search", search_table(by_seed), f" --seed {' '.join(map(str, seeds))}")
    print(markdown(found))


if __name__ == "__main__":
    PARTS = ("search", "more_like_this", "time")
    with command("surfaces", __doc__) as parser:
        parser.add_argument("parts", nargs="*", help=f"some of {', '.join(PARTS)}; default: all")
        parser.add_argument(
            "--seed", nargs="+", type=seed_of, default=list(EVALUATION_SEEDS), help="worlds to search in"
        )
        parser.add_argument("--run", type=Path, default=ml_100k_runs()[0], help="of MovieLens-100K, finished")
        given = parser.parse_args()
        if strange := sorted(set(given.parts) - set(PARTS)):
            parser.error(f"no part {strange[0]!r}; give some of {', '.join(PARTS)}")
        main(given.parts or list(PARTS), given.seed, given.run)
