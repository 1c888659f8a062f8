"""The seam between the client's logic and the network: tensors in and out, errors as `errors.py` draws them.

In production gRPC to NVIDIA Triton Inference Server; in tests anything with the same two methods.
"""

from __future__ import annotations

import json
import re
from typing import Any, Protocol

import numpy as np
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
from tritonclient.utils import InferenceServerException

from ..foundation.schema import WIRE
from .errors import (
    DeadlineExceeded,
    FrontrowError,
    InvalidRequest,
    ModelNotFound,
    Overloaded,
    ServerFault,
    ServerUnavailable,
)

_CHANNEL_OPTIONS: list[tuple[str, int | str]] = [
    # A history of 100,000 events or a slice of a catalogue is larger than gRPC's 4 MiB. −1 is no limit.
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    # Data that a dead peer does not acknowledge breaks the connection after 10 s: TCP_USER_TIMEOUT follows
    # the keepalive timeout. Pings more frequent than every 300 s make Triton Server hang up by default.
    ("grpc.keepalive_time_ms", 300_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    # The pause between attempts to reconnect grows to two minutes by default: too long after a restart.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1_000),
]

# For a name behind which several servers stand: requests go to each in turn, and one that a server refuses because it
# ends or is full goes to the next, while at least as many succeed as fail: under overload repeating would add to it.
_BALANCED: list[tuple[str, int | str]] = [
    (
        "grpc.service_config",
        json.dumps(
            {
                "loadBalancingConfig": [{"round_robin": {}}],
                "methodConfig": [
                    {
                        "name": [{"service": "inference.GRPCInferenceService"}],
                        "retryPolicy": {
                            "maxAttempts": 3,
                            "initialBackoff": "0.01s",
                            "maxBackoff": "0.1s",
                            "backoffMultiplier": 2,
                            "retryableStatusCodes": ["UNAVAILABLE"],
                        },
                    }
                ],
                "retryThrottling": {"maxTokens": 20, "tokenRatio": 1.0},  # gRPC 1.85 takes 1 for 0
            }
        ),
    ),
    # The name is asked again when a connection ends, by default at most every 30 s: a server that came is found, and
    # one that went forgotten, so much later.
    ("grpc.dns_min_time_between_resolutions_ms", 5_000),
    ("grpc.enable_http_proxy", 0),  # a proxy would choose one server for all requests
]

_CLOSED = "this client is closed; make a new one"

# UNAVAILABLE stands for a full queue, for a version that is being loaded or unloaded, and for nobody who answers. Only
# the words tell them apart.
_QUEUE_FULL = re.compile(r"maximum queue size|timeout expired", re.IGNORECASE)
_NOT_LOADED = re.compile(r"unknown model|not at ready state|no available versions", re.IGNORECASE)


class Transport(Protocol):
    """Calls a served model. Must be safe to use from several threads at once."""

    def infer(
        self, model: str, inputs: dict[str, np.ndarray], *, timeout_s: float, version: str = ""
    ) -> dict[str, np.ndarray]:
        """Outputs by name for inputs by name, both as `WIRE[model]` has them with a batch dimension in front.

        BYTES are object arrays of `bytes`. `version` is a number as text; empty is the newest. Raises
        FrontrowError when there is no answer within `timeout_s` seconds or the server refuses.
        """
        ...

    def close(self) -> None:
        """Let go of connections. Closing twice is no error."""
        ...


class AsyncTransport(Protocol):
    """The same for asyncio."""

    async def infer(
        self, model: str, inputs: dict[str, np.ndarray], *, timeout_s: float, version: str = ""
    ) -> dict[str, np.ndarray]:
        """See Transport.infer."""
        ...

    async def close(self) -> None:
        """Let go of connections. Closing twice is no error."""
        ...


class GrpcTransport:
    """gRPC to a Triton Server at `url`, "host:port". One connection, shared by all threads.

    "dns:///host:port" is one connection to each address of the host, and requests go to all of them in turn.
    Connects on the first call. Raises InvalidRequest if `url` carries a scheme such as http://.
    background: nobody waits for these answers; the server gives others first, and refuses these first.
    """

    def __init__(self, url: str, *, background: bool = False) -> None:
        self._url = _checked(url)
        self._parameters = _parameters(background)
        self._client = triton.InferenceServerClient(url, channel_args=_channel_options(url))
        self._closed = False

    def infer(
        self, model: str, inputs: dict[str, np.ndarray], *, timeout_s: float, version: str = ""
    ) -> dict[str, np.ndarray]:
        """See Transport.infer."""
        if self._closed:
            raise InvalidRequest(_CLOSED)
        tensors = _encode(model, inputs)
        try:
            result = self._client.infer(
                model, tensors, version, client_timeout=timeout_s, timeout=_microseconds(timeout_s),
                parameters=self._parameters,
            )  # fmt: skip
        except InferenceServerException as error:
            raise _translate(error, self._url, model, version, timeout_s) from error
        return _decode(model, result, self._url)

    def close(self) -> None:
        self._closed = True
        self._client.close()


class AsyncGrpcTransport:
    """The same for asyncio. To be used within one event loop."""

    def __init__(self, url: str, *, background: bool = False) -> None:
        self._url = _checked(url)
        self._parameters = _parameters(background)
        # Made on the first call, because a channel belongs to the event loop that runs when it is made.
        self._client: triton_aio.InferenceServerClient | None = None
        self._closed = False

    async def infer(
        self, model: str, inputs: dict[str, np.ndarray], *, timeout_s: float, version: str = ""
    ) -> dict[str, np.ndarray]:
        """See Transport.infer."""
        if self._closed:
            raise InvalidRequest(_CLOSED)
        tensors = _encode(model, inputs)
        if self._client is None:
            self._client = triton_aio.InferenceServerClient(self._url, channel_args=_channel_options(self._url))
        try:
            result = await self._client.infer(
                model, tensors, version, client_timeout=timeout_s, timeout=_microseconds(timeout_s),
                parameters=self._parameters,
            )  # fmt: skip
        except InferenceServerException as error:
            raise _translate(error, self._url, model, version, timeout_s) from error
        return _decode(model, result, self._url)

    async def close(self) -> None:
        self._closed = True
        if self._client is not None:
            await self._client.close()


def _checked(url: str) -> str:
    if not isinstance(url, str) or not url:
        raise InvalidRequest(f"url is {url!r}; gRPC takes host:port, such as localhost:8001")
    if url.startswith(("http://", "https://")):
        raise InvalidRequest(f"url {url!r} carries a scheme; gRPC takes host:port, such as localhost:8001")
    if not url.startswith("unix") and not url.rpartition(":")[2].isdecimal():  # else gRPC takes port 443
        raise InvalidRequest(f"url {url!r} names no port; gRPC takes host:port, such as localhost:8001")
    return url


def _channel_options(url: str) -> list[tuple[str, int | str]]:
    """gRPC honours http_proxy and no_proxy; but no proxy reaches a server on this very host."""
    if url.startswith("dns:"):
        return [*_CHANNEL_OPTIONS, *_BALANCED]
    here = url.rpartition(":")[0] in ("localhost", "127.0.0.1", "[::1]")
    return [*_CHANNEL_OPTIONS, *([("grpc.enable_http_proxy", 0)] if here else [])]


def _parameters(background: bool) -> dict[str, Any]:
    return {"background": True} if background else {}


def _microseconds(timeout_s: float) -> int:
    """For the server, which then makes no page that comes too late."""
    return max(1, min(int(timeout_s * 1e6), 2**63 - 1))


def _encode(model: str, inputs: dict[str, np.ndarray]) -> list[triton.InferInput]:
    dtypes = {tensor.name: tensor.dtype for tensor in WIRE[model][0]}
    return [
        triton.InferInput(name, list(array.shape), dtypes[name]).set_data_from_numpy(array)
        for name, array in inputs.items()
    ]


def _decode(model: str, result: Any, url: str) -> dict[str, np.ndarray]:
    outputs = {tensor.name: result.as_numpy(tensor.name) for tensor in WIRE[model][1]}
    if missing := [name for name, array in outputs.items() if array is None]:
        raise ServerFault(f"model {model!r} at {url} answered without {missing}; is it a Frontrow server?")
    return outputs


def _translate(error: InferenceServerException, url: str, model: str, version: str, timeout_s: float) -> FrontrowError:
    status, words = (error.status() or "").removeprefix("StatusCode."), error.message() or ""
    what = f"model {model!r}" + (f" version {version}" if version else "")
    match status:
        case "INVALID_ARGUMENT":
            return InvalidRequest(words)
        case "DEADLINE_EXCEEDED":
            return DeadlineExceeded(
                f"no answer from {what} at {url} within {timeout_s:g} s; raise timeout_s, or look at its load"
            )
        case "RESOURCE_EXHAUSTED":
            return Overloaded(f"{url} has no capacity for {what}: {words}; ask again later, or add servers")
        case "UNAVAILABLE" if _QUEUE_FULL.search(words):
            return Overloaded(
                f"{url} has more requests for {what} than it can answer: {words}; show something simpler, or ask again "
                "later but not at once; if it lasts, add servers"
            )
        case "UNAVAILABLE" | "NOT_FOUND" if status == "NOT_FOUND" or _NOT_LOADED.search(words):
            return ModelNotFound(
                f"{url} does not hold {what}: {words}; if it is just changing bundles ask again, "
                "else start it with `frontrow serve` on that bundle"
            )
        case "UNAVAILABLE":
            return ServerUnavailable(f"no server at {url}; start one with `frontrow serve` ({words})")
        case _:
            return ServerFault(f"{what} at {url} failed with {status}: {words}; the server's log says more")
