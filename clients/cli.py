"""The `frontrow` command. It may import everything; each command imports what it needs when it runs.

Exit codes: 0 done, 1 the command failed and said why, 2 wrong usage, 3 `doctor` found something missing.
"""

from __future__ import annotations

import importlib.metadata
import json
import runpy
import sys
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from . import ask, show
from .ask import GRPC_PORT, Json
from .show import console, errors, print_json

app = typer.Typer(add_completion=False, no_args_is_help=True, rich_markup_mode=None, pretty_exceptions_enable=False)

DATA = Path("data/movielens-100k")
RUNS = Path("runs")
BUNDLES = Path("bundles")

DataFolder = Annotated[Path, typer.Option("--data", help="Folder with events.parquet and titles.parquet.")]
RunFolder = Annotated[Path, typer.Option("--run", help="Folder of the training run.")]
SomeRun = Annotated[Path | None, typer.Option("--run", help="Folder of a training run; default: the newest in runs/.")]
Epochs = Annotated[int | None, typer.Option(min=1, help="At most this many epochs.")]
Bundles = Annotated[Path, typer.Option("--bundles", help="Folder of numbered bundles; the highest is active.")]
GrpcPort = Annotated[int, typer.Option("--grpc-port", min=1, max=65535, help="Port of gRPC, which clients ask.")]
HttpPort = Annotated[int, typer.Option("--http-port", min=1, max=65535, help="Port of HTTP: health and readiness.")]
MetricsPort = Annotated[int, typer.Option("--metrics-port", min=1, max=65535, help="Port of Prometheus metrics.")]

# What a command needs beyond the bare install; in a clone: pip install '.[train]'.
_EXTRAS = {"serve": "serve", "doctor": "serve", "demo": "serve,train"} | dict.fromkeys(
    ("homepage", "search", "similar"), "client"
)


def main() -> None:
    """Run the command; an expected failure is one line and exit code 1, not a traceback."""
    from .errors import FrontrowError

    try:
        app()
    except BrokenPipeError:
        sys.exit(0)
    except (FrontrowError, ValueError, OSError, RuntimeError, FloatingPointError) as error:
        _fail(f"{error.filename}: {error.strerror}" if isinstance(error, OSError) and error.filename else str(error))
    except ModuleNotFoundError as error:
        if error.name and error.name.startswith("frontrow"):
            raise
        command = sys.argv[1] if len(sys.argv) > 1 else ""
        extra = _EXTRAS.get(command, "train")
        needs = f"`frontrow {command}` needs frontrow[{extra}]; in the clone: pip install '.[{extra}]'"
        _fail(f"{error.name} is not installed: {needs}")


def _fail(words: str) -> NoReturn:
    errors.print(f"frontrow: {words}", style="red", markup=False, highlight=False, soft_wrap=True)
    sys.exit(1)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"frontrow {importlib.metadata.version('frontrow')}")
        raise typer.Exit


@app.callback()
def frontrow(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Train a model on what members did, and serve their homepages."""


class DataSet(StrEnum):
    """What `frontrow data` can obtain."""

    MOVIELENS_100K = "movielens-100k"


class Size(StrEnum):
    """The recipe's one dial (training/recipe.py)."""

    SMALL = "small"
    LARGE = "large"


RecipeSize = Annotated[Size | None, typer.Option("--size", help="Of the recipe; default: large from 500,000 events.")]


@app.command()
def data(
    name: Annotated[DataSet, typer.Argument(help="Which data set.")],
    source: Annotated[
        Path | None,
        typer.Option(help="Folder with u.data, u.item, u.genre, or with ml-100k.inter, ml-100k.item."),
    ] = None,
    folder: Annotated[Path, typer.Option(help="Where to write events.parquet and titles.parquet.")] = DATA,
    as_json: Json = False,
) -> None:
    """Obtain a data set to try Frontrow on.

    movielens-100k: from --source, else from the copy in the recbole wheel, which pip downloads (2 MB, its checksum is
    verified). Data of your own needs no command: see "Your own data" in the README.
    """
    from ..foundation.schema import default_schema
    from ..training.data import load_dataset
    from ..training.movielens import WHEEL, fetch_movielens_100k

    there = (folder / "events.parquet").is_file()
    origin = "there already" if there else f"from {source or f'the {WHEEL} wheel, downloaded with pip'}"
    with show.waiting(errors, f"{name.value} {origin}", quiet=as_json):
        fetch_movielens_100k(folder, source)
        dataset = load_dataset(folder, default_schema())
    if as_json:
        print_json({"folder": str(folder), **dataset.counts, "fingerprint": dataset.fingerprint})
    else:
        console.print(f"{folder}: {show.counts(dataset.counts)}, {origin}", soft_wrap=True)


@app.command()
def train(
    data: DataFolder = DATA,
    run: RunFolder = RUNS / "latest",
    epochs: Epochs = None,
    size: RecipeSize = None,
    seed: Annotated[int, typer.Option(min=0, max=2**31 - 1, help="Of everything random.")] = 0,
    half_life: Annotated[
        float | None,
        typer.Option(min=0, help="Hours in which later titles lose half their weight; 0: the next alone counts."),
    ] = None,
    schema: Annotated[
        Path | None, typer.Option(help="JSON file with fields, and their widths, other than docs/schema.json's.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the run's checkpoint.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a finished run.")] = False,
    begin_from: Annotated[
        Path | None, typer.Option("--from", help="A run whose weights, fields and model settings this one begins with.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Train a model on a data set.

    Runs on several processes, and GPUs, under torchrun (see the README).
    """
    from ..foundation.schema import Schema, default_schema
    from ..training.data import event_count, load_dataset
    from ..training.recipe import recipe, size_for
    from ..training.runs import best_epoch, read_earlier, train_run
    from ..training.train import is_first_process

    console.quiet = others = not is_first_process()  # an error is told by all: the first to exit ends the others
    declared = Schema.load(schema) if schema else None
    fields, config = recipe(declared or default_schema(), size.value if size else size_for(event_count(data)))
    if begin_from:
        earlier = read_earlier(begin_from)
        config, fields = replace(config, model=earlier.config), earlier.schema
    if half_life is not None:
        config = replace(config, model=replace(config.model, half_life_hours=half_life))
    config = replace(config, seed=seed, epochs=epochs or config.epochs)
    dataset = load_dataset(data, declared or fields)
    if not as_json:
        console.print(f"{data}: {show.counts(dataset.counts)}", soft_wrap=True, highlight=False)
    last: dict[str, Any] = {"epoch": -1, "losses": {}, "validation": {}}
    try:
        with show.training_bar(errors, config.epochs, last, quiet=as_json or others) as on_progress:
            train_run(run, data, dataset, config, on_progress, resume, overwrite, begin_from)
    except KeyboardInterrupt:
        go_on = (run / "checkpoint.pt").is_file()
        if not others:
            errors.print("stopped; go on with --resume" if go_on else "stopped before the first epoch ended")
        raise typer.Exit(130) from None
    if others:
        return
    best = best_epoch(run)
    if as_json:
        print_json({"run": str(run), **best})
    else:
        done = "trained" if last["epoch"] >= 0 else "is trained already"
        kept = "those it began from, better than any epoch" if begin_from and not best["epoch"] else "the best"
        found = show.metrics({name: value for name, value in best.items() if name.startswith("validation_")})
        text = f"{run} {done}: weights of epoch {best['epoch']:.0f}, {kept}, {found}; metrics.csv, curves.png"
        console.print(text, soft_wrap=True, highlight=False)


def _find_run(run: Path | None) -> Path:
    """The run that was asked for, else the one whose weights are newest. Raises ValueError if there is none."""
    if run is None:
        trained = sorted(RUNS.glob("*/best.pt"), key=lambda file: file.stat().st_mtime)
        if not trained:
            raise ValueError(f"no training run in {RUNS}/; train first (`frontrow train`), or name one with --run")
        return trained[-1].parent
    if not (run / "run.json").is_file():
        raise ValueError(f"{run} is not a training run: it has no run.json; train first (`frontrow train --run {run}`)")
    return run


@app.command()
def evaluate(
    run: SomeRun = None,
    part: Annotated[str, typer.Option(help="test or validation: which held-out event is predicted.")] = "test",
    as_json: Json = False,
) -> None:
    """Compare a trained model with baselines.

    The full catalogue is ranked for every held-out event, on the same split for everyone.
    """
    from ..training.evaluate import evaluate as evaluate_model
    from ..training.runs import load_run

    if part not in ("test", "validation"):
        raise ValueError(f"--part is {part!r}; give test or validation")
    run = _find_run(run)
    with show.waiting(errors, f"evaluating {run}", quiet=as_json):
        model, dataset = load_run(run)
        table = evaluate_model(model, dataset, "test" if part == "test" else "validation")
    if part == "test":
        (run / "evaluation.json").write_text(json.dumps(table, indent=1))
    if as_json:
        print_json(table)
    else:
        show.evaluation(console, run, table)


@app.command()
def export(
    run: SomeRun = None,
    bundles: Bundles = BUNDLES,
    rows: Annotated[Path | None, typer.Option(help="Row catalogue (rows.json) in place of the default one.")] = None,
    align_to: Annotated[
        Path | None, typer.Option(help="A bundle directory: the new vectors are turned so that they compare with its.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Write a trained model as the next bundle.

    Trains the row ranker on the frozen model first.
    """
    from ..foundation.bundle import read_manifest
    from ..serving.rows import read_rows
    from ..training.export import export_bundle
    from ..training.runs import load_run, read_run, weights_fingerprint

    run = _find_run(run)
    evaluation = run / "evaluation.json"
    metrics = json.loads(evaluation.read_text("utf-8")) if evaluation.is_file() else {}
    with show.bar(errors, quiet=as_json) as bar:
        task = bar.add_task("row ranker", total=None)
        model, dataset = load_run(run)
        catalogue = read_rows(rows, dataset.titles) if rows else None
        path = export_bundle(
            model, dataset, bundles, metrics, catalogue, weights_fingerprint(run), Path(read_run(run)["data"]).name,
            on_epoch=lambda done, total: bar.update(task, total=total, completed=done), align_to=align_to,
        )  # fmt: skip
    found = read_manifest(path)["metrics"]
    if as_json:
        tables = {k: found[k] for k in ("rows", "alignment") if k in found}
        print_json({"bundle": str(path), "version": int(path.name), **tables})
    else:
        show.row_table(console, found["rows"])
        if align_to:
            show.alignment(console, found["alignment"])
        console.print(f"{run} is now bundle {path}", soft_wrap=True, highlight=False)


@app.command()
def serve(
    bundle: Annotated[Path | None, typer.Option(help="A bundle directory; default: the newest in --bundles.")] = None,
    bundles: Bundles = BUNDLES,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 for every interface.")] = "127.0.0.1",
    grpc_port: GrpcPort = GRPC_PORT,
    http_port: HttpPort = 8000,
    metrics_port: MetricsPort = 8002,
    log: Annotated[Path, typer.Option(readable=False, help="Triton Server's log; /dev/stdout in a container.")] = Path(
        "runs/server.log"
    ),
    stages: Annotated[bool, typer.Option("--stages", help="Load the models of the single stages too.")] = False,
    instances: Annotated[
        int | None,
        typer.Option(min=1, envvar="FRONTROW_INSTANCES", help="Copies of the model; default: one a core, at most 4."),
    ] = None,
    queue: Annotated[
        int | None,
        typer.Option(min=1, envvar="FRONTROW_QUEUE", help="Requests that each takes at a time; more are refused."),
    ] = None,
    bfloat16: Annotated[
        bool, typer.Option("--bfloat16", help="Encode quicker and less exactly where the processor has bfloat16.")
    ] = False,
    control_key: Annotated[
        str | None,
        typer.Option(envvar="FRONTROW_CONTROL_KEY", help="Whoever sends it may load models; default: nobody."),
    ] = None,
    tritonserver: Annotated[list[str] | None, typer.Argument(help="After --: further options of tritonserver.")] = None,
) -> None:
    """Serve a bundle with Triton Server.

    Stays in the foreground until Ctrl-C or SIGTERM. SIGUSR1 changes to the bundle that is the newest then.
    """
    from .serve import run_serve

    run_serve(
        bundle, bundles, host=host, grpc_port=grpc_port, http_port=http_port,
        metrics_port=metrics_port, log=log, stages=stages, instances=instances, queue=queue, bfloat16=bfloat16,
        control_key=control_key, extra_args=tritonserver or [],
    )  # fmt: skip


for command in (ask.homepage, ask.search, ask.similar):
    app.command()(command)


@app.command()
def demo(
    member: Annotated[int, typer.Option(min=0, help="Whose homepage.")] = 42,
    epochs: Epochs = None,
    run: RunFolder = RUNS / "demo",
    bundles: Bundles = BUNDLES,
    grpc_port: GrpcPort = GRPC_PORT,
    http_port: HttpPort = 8000,
    metrics_port: MetricsPort = 8002,
) -> None:
    """Do all of the above on MovieLens-100K.

    Data, training, evaluation, bundle, server, one member's homepage. A second run reuses what is there.
    """
    from .demo import run_demo

    run_demo(member, epochs, run, bundles, grpc_port=grpc_port, http_port=http_port, metrics_port=metrics_port)


@app.command()
def reproduce(
    name: Annotated[str | None, typer.Argument(help="ml-100k or ml-1m; any name with --interactions.")] = None,
    source: Annotated[Path | None, typer.Option(help="Folder that holds the data set; ml-1m needs it.")] = None,
    interactions: Annotated[
        Path | None, typer.Option(help="CSV or Parquet of your own: member, title and perhaps timestamp, rating.")
    ] = None,
    titles: Annotated[Path | None, typer.Option(help="With it: title and perhaps name, year, genres.")] = None,
    seed: Annotated[
        list[int] | None, typer.Option(min=0, max=2**31 - 1, help="Repeat for several; default: those published.")
    ] = None,
    epochs: Epochs = None,
    size: RecipeSize = None,
    as_json: Json = False,
) -> None:
    """Measure how well titles are ranked on a data set.

    Trains the recipe with several seeds, resuming what was stopped, and writes the result beside baselines. With
    --epochs or --size it is a trial: runs/reproduce/NAME-trial, and no published result changes.
    """
    from .reproduce import run_reproduce

    run_reproduce(name, source, interactions, titles, seed, epochs, size.value if size else None, as_json)


class Benchmark(StrEnum):
    install = "install"
    latency = "latency"
    serve = "serve"
    overload = "overload"
    memory = "memory"
    scoring_cpu = "scoring-cpu"
    embedding_cpu = "embedding-cpu"
    kernels = "kernels"


@app.command(context_settings={"allow_extra_args": True, "allow_interspersed_args": False})
def bench(
    context: typer.Context, name: Annotated[Benchmark, typer.Argument(help="Which; `kernels` needs a GPU.")]
) -> None:
    """Measure, and write the result file.

    What follows the name goes to the benchmark, which is python -m frontrow.benchmarks.NAME. `install` measures
    nothing: it sets up perf_analyzer, which `serve` needs.
    """
    file = "perf_analyzer" if name is Benchmark.install else name.value.replace("-", "_")
    module = f"frontrow.benchmarks.{file}"
    sys.argv = [module, *context.args]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


@app.command()
def doctor(as_json: Json = False) -> None:
    """Say what this host lacks and how to mend it."""
    from dataclasses import asdict

    from ..serving.doctor import run_checks

    checks = run_checks()
    if as_json:
        print_json({"checks": [asdict(c) for c in checks]})
    else:
        show.checks(console, checks)
    if any(c.status in ("missing", "wrong") for c in checks):
        raise typer.Exit(3)


if __name__ == "__main__":
    main()
