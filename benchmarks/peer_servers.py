"""The servers that `frontrow serve` is compared with, each as a process of its own; serve_peers.py starts them.

    python -m frontrow.benchmarks.peer_servers fastapi|grpcio|pytriton BUNDLE --port N

Each answers with a PlainEngine (plain_engine.py) what `homepage` answers. They listen on 127.0.0.1, know the homepage
alone, and refuse nothing politely. Threads are set by OMP_NUM_THREADS. What they need: pip install '.[bench]'.
"""

# No `from __future__ import annotations`: FastAPI reads the types of a function's arguments, local ones too.

import signal
import sys
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from ..foundation.schema import WIRE
from ..serving.homepage import Page
from ..serving.requests import PageRequest
from ..serving.triton_model import page_request, page_row
from .command import command
from .plain_engine import PlainEngine
from .serve_run import free_ports

NUMPY = {"INT64": np.int64, "INT32": np.int32, "FP32": np.float32, "UINT8": np.uint8, "BYTES": np.object_}


def fastapi_app(engine: PlainEngine) -> Any:
    """POST /homepage, JSON in and out. `async def`: a page is computed where the request is read, without a change of
    thread; orjson writes numpy arrays as they are. Both are what makes FastAPI fastest here."""
    import orjson  # pyright: ignore[reportMissingImports]
    from fastapi import FastAPI, Response  # pyright: ignore[reportMissingImports]
    from pydantic import BaseModel  # pyright: ignore[reportMissingImports]

    class Asked(BaseModel):
        member_id: int = -1
        events: list[str] = []  # each a JSON text, as on the wire of `homepage`
        context: str = ""
        rows: int = 10
        titles: int = 8

    app = FastAPI()

    @app.post("/homepage")
    async def homepage(asked: Asked) -> Response:
        events, context = [e.encode() for e in asked.events], asked.context.encode()
        page = engine.page(PageRequest(asked.member_id, events, context, asked.rows, asked.titles))
        answer = {name: value for name, value in page_row(page).items() if name != "info"} | {"info": page.info}
        return Response(orjson.dumps(answer, option=orjson.OPT_SERIALIZE_NUMPY), media_type="application/json")

    return app


def serve_fastapi(engine: PlainEngine, port: int) -> None:
    import uvicorn  # pyright: ignore[reportMissingImports]

    uvicorn.run(fastapi_app(engine), host="127.0.0.1", port=port, log_level="warning", access_log=False)


def grpc_answer(engine: PlainEngine, message: Any) -> Any:
    """A ModelInferResponse to a ModelInferRequest for `homepage`, with one member in it."""
    from tritonclient.grpc.service_pb2 import ModelInferResponse  # pyright: ignore[reportAttributeAccessIssue]
    from tritonclient.utils import deserialize_bytes_tensor, serialize_byte_tensor

    row = {}
    for tensor, content in zip(message.inputs, message.raw_input_contents, strict=True):
        text = tensor.datatype == "BYTES"
        values = deserialize_bytes_tensor(content) if text else np.frombuffer(content, NUMPY[tensor.datatype])
        row[tensor.name] = values.reshape(-1)
    page = page_row(engine.page(page_request(row)))
    response = ModelInferResponse(model_name=message.model_name)
    for t in WIRE["homepage"][1]:
        values = page[t.name]
        response.outputs.add(name=t.name, datatype=t.dtype, shape=[1, *values.shape])
        raw = serialize_byte_tensor(values).item() if t.dtype == "BYTES" else np.ascontiguousarray(values).tobytes()
        response.raw_output_contents.append(raw)
    return response


def serve_grpcio(engine: PlainEngine, port: int) -> None:
    """The method ModelInfer of Triton Server's own protobuf service, so that the same messages go to and fro. One
    thread computes: two in one process take turns at Python's lock."""
    import grpc
    from tritonclient.grpc import service_pb2_grpc

    class Servicer(service_pb2_grpc.GRPCInferenceServiceServicer):
        def ModelInfer(self, request: Any, context: Any) -> Any:
            return grpc_answer(engine, request)

    server = grpc.server(ThreadPoolExecutor(1))
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(Servicer(), server)
    server.add_insecure_port(f"127.0.0.1:{port}")
    server.start()
    server.wait_for_termination()


def batch_answer(engine: PlainEngine, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Outputs of `homepage` [B, …] for inputs [B, …] of requests whose inputs have the same shapes; shorter pages end
    in rows of id −1."""
    count = len(next(iter(inputs.values())))
    rows = [{name: values[b].reshape(-1) for name, values in inputs.items()} for b in range(count)]
    requests = [page_request({"events": np.empty(0, np.object_)} | row) for row in rows]
    answers = []
    for page in engine.pages(requests):
        if not isinstance(page, Page):
            raise page
        answers.append(page_row(page))
    return {t.name: _stacked([answer[t.name] for answer in answers], NUMPY[t.dtype]) for t in WIRE["homepage"][1]}


def _stacked(values: Sequence[np.ndarray], dtype: Any) -> np.ndarray:
    most = max(len(v) for v in values)
    if all(len(v) == most for v in values):
        return np.stack(values).astype(dtype, copy=False)
    stacked = np.full((len(values), most, *values[0].shape[1:]), -1 if dtype is np.int64 else 0, dtype)
    for at, v in enumerate(values):
        stacked[at, : len(v)] = v
    return stacked


def serve_pytriton(engine: PlainEngine, port: int) -> None:
    """Requests whose inputs have the same shapes share a batch. One instance: several would be threads of this process
    and take turns at Python's lock."""
    from pytriton.decorators import batch
    from pytriton.model_config import DynamicBatcher, ModelConfig, Tensor
    from pytriton.triton import Triton, TritonConfig, TritonSecurityConfig

    @batch
    def homepage(**inputs: np.ndarray) -> dict[str, np.ndarray]:
        return batch_answer(engine, inputs)

    inputs, outputs = (
        [Tensor(t.dims, bytes if t.dtype == "BYTES" else NUMPY[t.dtype], t.name, t.optional) for t in side]
        for side in WIRE["homepage"]
    )
    ports = zip(("grpc", "http", "metrics"), (port, *free_ports(2)), strict=True)
    options: dict[str, Any] = {}
    for of, number in ports:
        options |= {f"{of}_address": "127.0.0.1", f"{of}_port": number}
    config = TritonConfig(**options)
    open_to_all = TritonSecurityConfig(restricted_endpoints=[])  # perf_analyzer asks for statistics
    with tempfile.TemporaryDirectory(prefix="frontrow-bench-") as scratch, Triton(
        config=config, security_config=open_to_all, workspace=f"{scratch}/pytriton"
    ) as triton:  # fmt: skip
        triton.bind(
            "homepage", homepage, inputs, outputs,
            config=ModelConfig(max_batch_size=64, batcher=DynamicBatcher()),
        )  # fmt: skip
        triton.serve()


SERVERS = {"fastapi": serve_fastapi, "grpcio": serve_grpcio, "pytriton": serve_pytriton}

if __name__ == "__main__":
    with command("peer_servers", __doc__) as parser:
        parser.add_argument("peer", choices=tuple(SERVERS))
        parser.add_argument("bundle", type=Path, metavar="BUNDLE")
        parser.add_argument("--port", type=int, required=True)
        given = parser.parse_args()
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # so that pytriton stops its server
        SERVERS[given.peer](PlainEngine(given.bundle), given.port)
