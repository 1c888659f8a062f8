"""Triton Server models of benchmarks, which no user gets: written into a repository of their own and served."""

from __future__ import annotations

import os
import secrets
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path

from ..foundation.bundle import read_manifest
from ..foundation.schema import WIRE, Tensor
from ..serving.triton_server import TritonServer, write_repository
from .serve_run import Server, free_ports

CODE = Path(__file__).parent / "triton_models"
READY_TIMEOUT_S = 180
_TYPES = {"BYTES": "STRING"}


@dataclass(frozen=True)
class Model:
    """A Python model. code: its file in triton_models/, None for the model of that name that is shipped. wire: inputs
    and outputs, None for those of WIRE. batching: dynamic, ragged where a length is free."""

    name: str
    code: str | None = None
    wire: tuple[Sequence[Tensor], Sequence[Tensor]] | None = None
    batching: bool = True


def config_text(model: Model) -> str:
    """Its config.pbtxt, as far as write_repository leaves it to templates."""
    lines = [f'name: "{model.name}"', 'backend: "python"', "max_batch_size: 64"]
    for side, tensors in zip(("input", "output"), model.wire or WIRE[model.name], strict=True):
        for t in tensors:
            optional = " optional: true" if t.optional else ""
            ragged = " allow_ragged_batch: true" if side == "input" and -1 in t.dims and model.batching else ""
            dims = ", ".join(map(str, t.dims))
            kind = _TYPES.get(t.dtype, t.dtype)
            lines.append(f'{side} {{ name: "{t.name}" data_type: TYPE_{kind} dims: [ {dims} ]{ragged}{optional} }}')
    return "\n".join([*lines, *(["dynamic_batching { }"] if model.batching else [])]) + "\n"


def write_template(model: Model, templates: Path) -> None:
    """`templates`/<name>/config.pbtxt and 1/model.py, as write_repository wants them."""
    code = templates / model.name / "1" / "model.py"
    code.parent.mkdir(parents=True)
    shipped: Traversable = resources.files("frontrow.model_repository").joinpath(model.name)
    if model.code is None:
        (templates / model.name / "config.pbtxt").write_text(shipped.joinpath("config.pbtxt").read_text("utf-8"))
        code.write_bytes(shipped.joinpath("1", "model.py").read_bytes())
    else:
        (templates / model.name / "config.pbtxt").write_text(config_text(model))
        code.write_bytes((CODE / model.code).read_bytes())


@contextmanager
def models_serving(
    bundle: Path, models: Sequence[Model], *, instances: int = 1, threads: int | None = None, ensemble: str = ""
) -> Iterator[Server]:
    """A Triton Server with these models of a bundle until the block ends. threads: of each instance, None for torch's
    own choice. ensemble: the config.pbtxt of an ensemble of them, which is called `ensemble`."""
    with tempfile.TemporaryDirectory(prefix="frontrow-bench-") as scratch:
        templates = Path(scratch) / "templates"
        for model in models:
            write_template(model, templates)
        version = read_manifest(bundle)["version"]
        names = [m.name for m in models]
        repository = write_repository(
            bundle, Path(scratch) / "models", names, version=version, instances=instances, templates=templates
        )
        if ensemble:
            (repository / "ensemble" / "1").mkdir(parents=True)
            (repository / "ensemble" / "config.pbtxt").write_text(ensemble)
            names.append("ensemble")
        grpc, http, metrics = free_ports(3)
        server = TritonServer(
            repository=repository, load=names, log=Path(scratch) / "server.log", control_key=secrets.token_urlsafe(24),
            grpc_port=grpc, http_port=http, metrics_port=metrics, threads=threads,
        )  # fmt: skip
        with server:
            seconds = server.wait_ready(READY_TIMEOUT_S)
            yield Server(server.address, os.getpid(), seconds, name=server.name)
