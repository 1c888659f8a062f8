"""Requests sent on time, whatever becomes of those before: what perf_analyzer, which gives up at the first refusal,
cannot do. Used by overload.py and by the soak test.

A request's latency counts from when it should have been sent, so that a client or server that stalls is seen.
Shape letter: n requests.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count

import grpc.aio
import numpy as np
from tritonclient.grpc import service_pb2
from tritonclient.utils import serialize_byte_tensor

from ..foundation.schema import WIRE
from ..serving.requests import PageRequest

PATIENCE_S = 20.0
_METHOD = "/inference.GRPCInferenceService/ModelInfer"
_REFUSED = ("maximum queue size", "timeout expired")


@dataclass(frozen=True)
class Outcomes:
    """sent float64 [n]: seconds since the start at which each request was due. latency float64 [n]: seconds from then
    to its answer. said: "" for a page, else the server's words."""

    sent: np.ndarray
    latency: np.ndarray
    said: Sequence[str]

    @property
    def accepted(self) -> np.ndarray:
        """bool [n]: answered with a page."""
        return np.array([not words for words in self.said], bool)

    @property
    def refused(self) -> np.ndarray:
        """bool [n]: refused for want of capacity."""
        return np.array([any(r in words for r in _REFUSED) for words in self.said], bool)

    @property
    def failed(self) -> list[str]:
        """What the server said of the others."""
        return [words for words, fine in zip(self.said, self.accepted | self.refused, strict=True) if not fine]


def serialized(request: PageRequest, *, background: bool = False) -> bytes:
    """A request as it goes over the wire, made beforehand: a client that makes it while it measures takes the
    processor time of the server beside it."""
    values = {
        "member_id": np.array([[request.member_id]], np.int64),
        "events": np.array([list(request.events)], np.object_),
        "context": np.array([[request.context] if request.context else []], np.object_),
        "page": np.array([[request.rows, request.titles]], np.int32),
        "exclude": request.exclude[None],
        "surface": np.array([[request.surface.encode()]], np.object_),
        "experiment": np.array([[request.experiment.encode()] if request.experiment else []], np.object_),
    }
    message = service_pb2.ModelInferRequest(model_name="homepage")  # pyright: ignore[reportAttributeAccessIssue]
    if background:
        message.parameters["background"].bool_param = True
    for t in WIRE["homepage"][0]:
        value = values[t.name]
        message.inputs.add(name=t.name, datatype=t.dtype, shape=value.shape)
        if t.dtype == "BYTES":
            serial = serialize_byte_tensor(value)
            message.raw_input_contents.append(serial.item() if serial.size else b"")
        else:
            message.raw_input_contents.append(value.tobytes())
    return message.SerializeToString()


def at_rate(address: str, requests: Sequence[bytes], rate: float, seconds: float, seed: int = 0) -> Outcomes:
    """Requests at random times, `rate` a second on average, the given ones in turn."""
    return at_times(address, requests, poisson(rate, seconds, seed))


def poisson(rate: float, seconds: float, seed: int = 0) -> np.ndarray:
    """Random times float64 [n] within so many seconds, `rate` a second on average."""
    rng = np.random.default_rng(seed)
    return np.sort(rng.random(rng.poisson(rate * seconds))) * seconds


def at_times(address: str, requests: Sequence[bytes], due: np.ndarray) -> Outcomes:
    """Requests at the times float64 [n], seconds from now on."""

    async def run() -> Outcomes:
        async with grpc.aio.insecure_channel(address) as channel:
            ask = _asker(channel)
            await ask(requests[0])  # connects
            began = time.perf_counter()

            async def one(number: int) -> tuple[float, str]:
                words = await ask(requests[number % len(requests)])
                return time.perf_counter() - began - due[number], words

            tasks = []
            for number, at in enumerate(due):
                if (wait := began + at - time.perf_counter()) > 0:
                    await asyncio.sleep(wait)
                tasks.append(asyncio.create_task(one(number)))
            found = await asyncio.gather(*tasks)
        return Outcomes(due, np.array([latency for latency, _ in found]), [words for _, words in found])

    return asyncio.run(run())


def in_flight(address: str, requests: Sequence[bytes], concurrency: int, seconds: float) -> Outcomes:
    """Always so many requests on the way; those of the first fifth, while the server settles, are left out."""
    found: list[tuple[float, float, str]] = []

    async def run() -> None:
        async with grpc.aio.insecure_channel(address) as channel:
            ask, numbers, began = _asker(channel), count(), time.perf_counter()

            async def one() -> None:
                while (sent := time.perf_counter() - began) < seconds:
                    words = await ask(requests[next(numbers) % len(requests)])
                    found.append((sent, time.perf_counter() - began - sent, words))

            await asyncio.gather(*(one() for _ in range(concurrency)))

    asyncio.run(run())
    kept = [f for f in found if f[0] >= seconds / 5]
    return Outcomes(np.array([f[0] for f in kept]), np.array([f[1] for f in kept]), [f[2] for f in kept])


def _asker(channel: grpc.aio.Channel) -> Callable:
    call = channel.unary_unary(_METHOD)  # bytes in, bytes out

    async def ask(request: bytes) -> str:
        try:
            await call(request, timeout=PATIENCE_S)
        except grpc.aio.AioRpcError as error:
            return f"{error.code().name}: {error.details()}"
        return ""

    return ask
