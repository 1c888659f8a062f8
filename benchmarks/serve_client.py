"""One closed-loop load generator for servers of any protocol: so many requests in flight, each followed by the next.

Requests are bytes made beforehand and answers are not decoded, so that the generator costs about the same for a KServe
message over gRPC and for JSON over HTTP: the servers pay for their protocol, the client does not. It is asyncio in this
process, so it takes more of the processor than perf_analyzer, from all servers alike.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from ..foundation.schema import WIRE
from ..serving.requests import PageRequest
from .serve_load import inputs_of

Protocol = Literal["kserve", "json"]
TIMEOUT_S = 60.0
_JSON = {"content-type": "application/json"}
_INFER = "/inference.GRPCInferenceService/ModelInfer"
_NUMPY = {"INT64": np.int64, "INT32": np.int32, "FP32": np.float32, "UINT8": np.uint8}
Call = Callable[[bytes], Awaitable[bytes]]


@dataclass(frozen=True)
class Target:
    """Where to ask for pages. With several addresses, requests in flight are spread over them evenly. sends_empty: also
    optional inputs without a value, without which Triton Server batches less, and with which pytriton fails. constants:
    inputs that a KServe model has besides those of `homepage`, the same for each request; INT64 unless WIRE
    has the name."""

    protocol: Protocol
    addresses: tuple[str, ...]
    model: str = "homepage"
    sends_empty: bool = True
    constants: Mapping[str, Sequence[int]] = field(default_factory=dict)


def encoded(target: Target, request: PageRequest) -> bytes:
    """A request as the target reads it."""
    values = inputs_of(request)
    if target.protocol == "json":
        first = {name: "".join(values[name]) for name in ("context",)}
        page = dict(zip(("rows", "titles"), values["page"], strict=True))
        return json.dumps({"member_id": request.member_id, "events": values["events"], **first, **page}).encode()
    from tritonclient.grpc.service_pb2 import ModelInferRequest  # pyright: ignore[reportAttributeAccessIssue]
    from tritonclient.utils import serialize_byte_tensor

    message = ModelInferRequest(model_name=target.model)
    types = {t.name: t.dtype for side in WIRE.values() for t in side[0]}
    for name, content in (values | dict(target.constants)).items():
        if not len(content) and not target.sends_empty:
            continue
        dtype = types.get(name, "INT64")
        message.inputs.add(name=name, datatype=dtype, shape=[1, len(content)])
        if dtype == "BYTES":
            text = np.array([str(v).encode() for v in content], np.object_)
            message.raw_input_contents.append(serialize_byte_tensor(text).item() if len(text) else b"")
        else:
            message.raw_input_contents.append(np.array(content, _NUMPY[dtype]).tobytes())
    return message.SerializeToString()


def decoded(target: Target, answer: bytes) -> dict[str, np.ndarray]:
    """The outputs of one page by name, without `info`."""
    if target.protocol == "json":
        types = {t.name: _NUMPY[t.dtype] for t in WIRE["homepage"][1] if t.name != "info"}
        return {name: np.array(value, types[name]) for name, value in json.loads(answer).items() if name != "info"}
    from tritonclient.grpc.service_pb2 import ModelInferResponse  # pyright: ignore[reportAttributeAccessIssue]

    message = ModelInferResponse.FromString(answer)
    found = {}
    for tensor, content in zip(message.outputs, message.raw_output_contents, strict=True):
        if tensor.datatype != "BYTES":
            found[tensor.name] = np.frombuffer(content, _NUMPY[tensor.datatype]).reshape(tensor.shape[1:])
    return found


@asynccontextmanager
async def calls(target: Target, in_flight: int) -> AsyncIterator[list[Call]]:
    """A call for each address, with its connections open until the block ends. A refused request raises."""
    async with AsyncExitStack() as stack:
        found: list[Call] = []
        if target.protocol == "kserve":
            import grpc

            options = [("grpc.max_receive_message_length", -1), ("grpc.enable_http_proxy", 0)]
            for address in target.addresses:
                channel = await stack.enter_async_context(grpc.aio.insecure_channel(address, options))
                method: Any = channel.unary_unary(_INFER)
                found.append(lambda body, method=method: method(body, timeout=TIMEOUT_S))
        else:
            import aiohttp  # pyright: ignore[reportMissingImports]

            connector, timeout = aiohttp.TCPConnector(limit=0), aiohttp.ClientTimeout(TIMEOUT_S)
            opened = aiohttp.ClientSession(connector=connector, timeout=timeout)
            session = await stack.enter_async_context(opened)

            async def post(url: str, body: bytes) -> bytes:
                async with session.post(url, data=body, headers=_JSON) as answer:
                    content = await answer.read()
                    if answer.status != 200:
                        raise RuntimeError(f"{url}: {answer.status} {content[:300]!r}")
                    return content

            found += [lambda body, url=f"http://{a}/homepage": post(url, body) for a in target.addresses]
        yield found


def ask(target: Target, bodies: Sequence[bytes]) -> list[bytes]:
    """The answers, one request after the other."""

    async def all_of_them() -> list[bytes]:
        async with calls(target, 1) as found:
            return [await found[i % len(found)](body) for i, body in enumerate(bodies)]

    return asyncio.run(all_of_them())


def closed_loop(target: Target, bodies: Sequence[bytes], in_flight: int, seconds: float, warm: float) -> dict[str, Any]:
    """Pages per second and latency in milliseconds, after `warm` seconds that do not count. Raises what a call raises:
    not one request may fail."""
    done: list[tuple[float, float]] = []  # when an answer came, and how long it took

    async def lane(call: Call, number: int, end: float) -> None:
        at = number
        while (started := time.monotonic()) < end:
            await call(bodies[at % len(bodies)])
            now = time.monotonic()
            done.append((now, now - started))
            at += in_flight

    async def all_lanes() -> float:
        async with calls(target, in_flight) as found:
            begin = time.monotonic() + warm
            await asyncio.gather(*(lane(found[i % len(found)], i, begin + seconds) for i in range(in_flight)))
            return begin

    begin = asyncio.run(all_lanes())
    counted = [took for when, took in done if begin <= when <= begin + seconds]
    if not counted:
        raise RuntimeError(f"no page came from {target} within {seconds:g} s")
    milliseconds = np.array(counted) * 1000
    return {
        "pages_per_second": round(len(counted) / seconds, 2),
        "pages": len(done),  # warm ones too: what the server worked for
        "latency_ms": {f"p{q}": round(float(np.percentile(milliseconds, q)), 3) for q in (50, 95, 99)},
    }
