"""A bundle served by a local Triton Server: repository, server, and the proof that it answers rightly."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from ..foundation.bundle import MANIFEST, BundleError, read_manifest
from ..foundation.schema import WIRE
from .gate import QUEUE_FULL
from .known import compare_known
from .triton_server import CONTROL_HEADER, ServerError, TritonServer, nvidia_gpus, write_repository

DEFAULT_MODELS = ("homepage", "catalogue")
STAGE_MODELS = ("foundation_model", "candidate_retrieval", "candidate_scoring", "row_ranking")
READY_TIMEOUT_S = 180
PROOF_TIMEOUT_S = 60  # while the queue is full


def default_instances() -> int:
    """One for each core, at most 4. A core more for the same instance would bring a page nothing, and threads that wait
    for each other on busy cores cost more than they bring. Where GPUs compute, most of a page's time is still a core's:
    as many for each GPU as two cores each allow, the other one for Triton Server and its clients, at most 8, since each
    holds a CUDA context and its graphs. Not measured on a GPU yet."""
    cores, gpus = len(os.sched_getaffinity(0)), nvidia_gpus()
    return max(1, min(8, cores // (2 * gpus))) if gpus else min(4, cores)


class WrongAnswer(ServerError):
    """The server answers a known request differently than the bundle says."""


@contextmanager
def serve_bundle(
    bundle: Path,
    *,
    host: str = "127.0.0.1",
    grpc_port: int = 8001,
    http_port: int = 8000,
    metrics_port: int = 8002,
    log: Path,
    stages: bool = False,
    instances: int = 1,
    queue: int | None = None,
    bfloat16: bool = False,
    control_key: str | None = None,
    extra_args: Sequence[str] = (),
    on_tick: Callable[[float], None] | None = None,
) -> Iterator[TritonServer]:
    """A Triton Server that serves `bundle` until the block ends; entered when it is ready, warm and proved.

    host: the address to listen on, 0.0.0.0 for every interface. stages: also load the stage models. instances: copies
    of the model, on each GPU if there are any, each a process with one thread. queue: how many requests may wait before
    more are refused (default: what gate.py says). bfloat16: let the transformer multiply so where the processor does it
    natively (precision.py). control_key: whoever holds it may load and unload models; default random. extra_args:
    further options of tritonserver.
    Raises BundleError before anything starts if the bundle is not whole; ServerError if the server does not come up
    or answers a known request wrongly.
    """
    bundle = bundle.resolve()
    version = _version(bundle)
    models = (*DEFAULT_MODELS, *(STAGE_MODELS if stages else ()))
    with tempfile.TemporaryDirectory(prefix="frontrow-repository-") as scratch:
        repository = write_repository(
            bundle, Path(scratch) / "models", (*DEFAULT_MODELS, *STAGE_MODELS),
            version=version, instances=instances, queue=queue, bfloat16=bfloat16,
        )  # fmt: skip
        server = TritonServer(
            repository=repository, load=models, log=log, host=host, grpc_port=grpc_port, http_port=http_port,
            metrics_port=metrics_port, control_key=control_key or secrets.token_urlsafe(24),
            scratch=Path(scratch), threads=1,
            extra_args=extra_args,
        )  # fmt: skip
        with server:
            server.wait_ready(READY_TIMEOUT_S, on_tick)
            prove(server, json.loads((bundle / "known.json").read_bytes()), exactly=not bfloat16)
            yield server


def change_bundle(
    server: TritonServer, bundle: Path, *, instances: int = 1, queue: int | None = None, bfloat16: bool = False
) -> None:
    """Serves `bundle`, of another version, in place of the one that `server` serves; returns when it has.

    The old one answers until the new one is ready, proved within the model by its known answers, and then what has
    reached it; no request is refused. Meanwhile both are in memory. The catalogue changes first, so that who gets a
    page of the new bundle finds its names; who asks for the names of the old one only then does not.
    Raises BundleError, or ServerError if a model does not load or answers wrongly: the old one is then served on, its
    catalogue loaded again where that had changed.
    """
    bundle = bundle.resolve()
    version = _version(bundle)
    if (server.repository / DEFAULT_MODELS[0] / str(version)).exists():
        raise BundleError(f"{bundle} is version {version}, as is the bundle that is served: number it anew")
    loaded: list[str] = []
    with tempfile.TemporaryDirectory(prefix="before-", dir=server.repository.parent) as scratch:
        before = Path(shutil.copytree(server.repository, Path(scratch) / "models"))
        write_repository(
            bundle, server.repository, (*DEFAULT_MODELS, *STAGE_MODELS),
            version=version, instances=instances, queue=queue, bfloat16=bfloat16,
        )  # fmt: skip
        try:
            for model in reversed(server.load):
                _load(server, model, str(bundle))
                loaded.append(model)
            prove(server, json.loads((bundle / "known.json").read_bytes()), exactly=not bfloat16)
        except (OSError, ServerError):
            shutil.rmtree(server.repository)
            # Written now: Triton Server loads again what is newer than what it has.
            shutil.copytree(before, server.repository, copy_function=shutil.copyfile)
            for model in loaded:
                _load(server, model, "the bundle before")
            raise


def _load(server: TritonServer, model: str, of: str) -> None:
    """Loads a model as the repository has it now. Raises ServerError, which says what is not served."""
    from tritonclient.utils import InferenceServerException

    headers = {f"triton-grpc-protocol-{CONTROL_HEADER}": server.control_key}
    with server.client() as client:
        try:
            client.load_model(model, headers=headers)
        except InferenceServerException as error:
            raise ServerError(f"{of} is not served: {error}; the log is {server.log}") from error


def _once_there_is_room(infer: Callable[[], Any]) -> Any:
    """What `infer` returns; a server that others keep busy refuses some requests, and these are asked again."""
    from tritonclient.utils import InferenceServerException

    deadline = time.monotonic() + PROOF_TIMEOUT_S
    while True:
        try:
            return infer()
        except InferenceServerException as error:
            if QUEUE_FULL not in str(error) or time.monotonic() > deadline:
                raise
            time.sleep(0.02)


def _version(bundle: Path) -> int:
    version = read_manifest(bundle).get("version")
    if not isinstance(version, int) or version < 1:
        raise BundleError(f"{bundle / MANIFEST}: version is {version!r}; it must be an integer from 1")
    return version


def prove(server: TritonServer, known: Mapping[str, Any], exactly: bool = True) -> None:
    """Ask the bundle's known requests over gRPC. Raises WrongAnswer if an answer is missing, empty or differs. exactly:
    see compare_known."""
    from tritonclient.grpc import InferInput
    from tritonclient.utils import InferenceServerException

    context = json.dumps(known["context"]).encode()
    pages = []
    with server.client() as client:
        for answer in known["answers"]:
            values = {
                "member_id": np.array([[answer["member_id"]]], np.int64),
                "context": np.array([[context]], np.object_),
                "page": np.array([[known["rows"], known["titles"]]], np.int32),
                "exclude": np.empty((1, 0), np.int64),
            }
            inputs = []
            for t in WIRE["homepage"][0]:
                value = values.get(t.name, np.empty((1, 0), np.object_))
                inputs.append(InferInput(t.name, list(value.shape), t.dtype))
                inputs[-1].set_data_from_numpy(value)
            try:
                result = _once_there_is_room(
                    lambda inputs=inputs: client.infer("homepage", inputs, client_timeout=READY_TIMEOUT_S)
                )
                assert result is not None
                row_scores, title_scores = result.as_numpy("row_scores"), result.as_numpy("title_scores")
                assert row_scores is not None
                assert title_scores is not None
            except InferenceServerException as error:
                raise WrongAnswer(
                    f"the server at {server.address} refuses a known request: {error}; its log is {server.log}"
                ) from error
            except (AssertionError, ValueError) as error:  # the right shape with no bytes in it
                raise WrongAnswer(
                    "the server leaves outputs empty; its Python needs numpy < 2 (see `frontrow doctor`)"
                ) from error
            pages.append((row_scores[0], title_scores[0]))
    if difference := compare_known(known, pages, exactly):
        raise WrongAnswer(f"the server answers a known request differently than the bundle: {difference}")
