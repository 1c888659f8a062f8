"""The gRPC transport against a server in this process on 127.0.0.1, and what importing the package brings."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import grpc
import numpy as np
import pytest
from frontrow import clients
from frontrow.clients import (
    AsyncGrpcTransport,
    AsyncHomepageClient,
    DeadlineExceeded,
    FrontrowError,
    GrpcTransport,
    HomepageClient,
    InvalidRequest,
    ModelNotFound,
    Overloaded,
    ServerFault,
    ServerUnavailable,
)
from frontrow.foundation.schema import WIRE
from name_server import NameServer
from tritonclient.grpc import InferInput, service_pb2, service_pb2_grpc

Infer = Callable[..., dict[str, np.ndarray]]
OFFSET = {"title_offset": np.array([[3]], np.int64)}
NAMES = ["Amélie", "", "日本", "nul\0"]


def infer_sync(url: str, *args, **kwargs) -> dict[str, np.ndarray]:
    with closing(GrpcTransport(url)) as transport:
        return transport.infer(*args, **kwargs)


def infer_async(url: str, *args, **kwargs) -> dict[str, np.ndarray]:
    async def ask() -> dict[str, np.ndarray]:
        transport = AsyncGrpcTransport(url)
        try:
            return await transport.infer(*args, **kwargs)
        finally:
            await transport.close()

    return asyncio.run(ask())


@pytest.fixture(params=[infer_sync, infer_async], ids=["sync", "async"])
def infer(request: pytest.FixtureRequest) -> Infer:
    """Both transports: every test that takes it is a promise of both."""
    return request.param


class Servicer(service_pb2_grpc.GRPCInferenceServiceServicer):
    """Answers `catalogue` with NAMES, or fails with `failure`; remembers the requests."""

    def __init__(self) -> None:
        self.failure: tuple[grpc.StatusCode, str] | None = None
        self.leave_out: str | None = None
        self.delay_s = 0.0
        self.requests: list = []

    def ModelInfer(self, request, context):
        self.requests.append(request)
        time.sleep(self.delay_s)
        if self.failure:
            context.abort(*self.failure)
        arrays = {
            "title_ids": np.arange(len(NAMES))[None],
            "title_names": np.array([[name.encode() for name in NAMES]], np.object_),
            "info": np.array([[b"{}"]], np.object_),
        }
        response = service_pb2.ModelInferResponse(model_name=request.model_name)
        for tensor in WIRE["catalogue"][1]:
            if tensor.name == self.leave_out:
                continue
            # An input's encoding is an output's.
            array = arrays[tensor.name]
            encoded = InferInput(tensor.name, array.shape, tensor.dtype).set_data_from_numpy(array)
            response.outputs.add(name=tensor.name, datatype=tensor.dtype, shape=array.shape)
            response.raw_output_contents.append(encoded._get_content())
        return response


@pytest.fixture(scope="module")
def running() -> Iterator[tuple[str, Servicer]]:
    server, servicer = grpc.server(ThreadPoolExecutor(4)), Servicer()
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}", servicer
    server.stop(None).wait()


@pytest.fixture
def served(running: tuple[str, Servicer]) -> tuple[str, Servicer]:
    """The address of a running server and what it answers, fresh for each test."""
    running[1].__init__()
    return running


@pytest.fixture
def closed_url() -> str:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return f"127.0.0.1:{listener.getsockname()[1]}"


@pytest.fixture
def silent_url() -> Iterator[str]:
    """Accepts connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"127.0.0.1:{listener.getsockname()[1]}"


# What crosses the wire


def test_dtypes_and_shapes_are_those_of_wire(infer: Infer, served: tuple[str, Servicer]):
    url, servicer = served
    infer(url, "catalogue", OFFSET, timeout_s=5, version="7")
    (request,) = servicer.requests
    assert (request.model_name, request.model_version) == ("catalogue", "7")
    assert [(t.name, t.datatype, list(t.shape)) for t in request.inputs] == [("title_offset", "INT64", [1, 1])]
    assert list(request.raw_input_contents) == [(3).to_bytes(8, "little")]


def test_empty_inputs_are_sent_with_zero_length(infer: Infer, served: tuple[str, Servicer]):
    url, servicer = served
    empty = {"events": np.empty((1, 0), np.object_), "exclude": np.empty((1, 0), np.int64)}
    with pytest.raises(ServerFault):  # this server answers any model as if it were the catalogue
        infer(url, "homepage", empty, timeout_s=5)
    (request,) = servicer.requests
    assert [(t.name, t.datatype, list(t.shape)) for t in request.inputs] == [
        ("events", "BYTES", [1, 0]),
        ("exclude", "INT64", [1, 0]),
    ]
    assert list(request.raw_input_contents) == [b"", b""]


def test_outputs_come_back_as_arrays(infer: Infer, served: tuple[str, Servicer]):
    outputs = infer(served[0], "catalogue", OFFSET, timeout_s=5)
    assert outputs.keys() == {t.name for t in WIRE["catalogue"][1]}
    assert outputs["title_ids"].tolist() == [[0, 1, 2, 3]]
    assert [name.decode() for name in outputs["title_names"][0]] == NAMES


def test_one_sync_transport_serves_many_threads(served: tuple[str, Servicer]):
    url, servicer = served
    with closing(GrpcTransport(url)) as transport, ThreadPoolExecutor(8) as pool:
        asks = [pool.submit(transport.infer, "catalogue", OFFSET, timeout_s=5) for _ in range(64)]
        assert all(ask.result()["title_ids"].shape == (1, 4) for ask in asks)
    assert len(servicer.requests) == 64


# What can go wrong


def test_no_server_is_named_with_the_cure(infer: Infer, closed_url: str):
    with pytest.raises(ServerUnavailable) as error:
        infer(closed_url, "catalogue", OFFSET, timeout_s=5)
    assert str(error.value).startswith(f"no server at {closed_url}; start one with `frontrow serve`")


def test_both_clients_say_so_too(closed_url: str):
    with HomepageClient(closed_url) as client, pytest.raises(ServerUnavailable, match=closed_url):
        client.homepage(42)

    async def ask() -> None:
        async with AsyncHomepageClient(closed_url) as client:
            with pytest.raises(ServerUnavailable, match=closed_url):
                await client.homepage(42)

    asyncio.run(ask())


def test_a_server_that_never_answers_is_given_up_in_time(infer: Infer, silent_url: str):
    start = time.monotonic()
    with pytest.raises(DeadlineExceeded, match=f"'catalogue' at {silent_url} within 0.2 s; raise timeout_s"):
        infer(silent_url, "catalogue", OFFSET, timeout_s=0.2)
    assert 0.15 < time.monotonic() - start < 2


def test_a_slow_answer_is_given_up_in_time(infer: Infer, served: tuple[str, Servicer]):
    served[1].delay_s = 0.4
    with pytest.raises(DeadlineExceeded):
        infer(served[0], "catalogue", OFFSET, timeout_s=0.1)


@pytest.mark.parametrize(
    ("status", "words", "kind"),
    [
        ("INVALID_ARGUMENT", "events[3].what.entity_id is 'x', not an integer", InvalidRequest),
        ("NOT_FOUND", "Request for unknown model: 'catalogue' is not found", ModelNotFound),
        ("UNAVAILABLE", "Request for unknown model: 'catalogue' has no available versions", ModelNotFound),
        ("UNAVAILABLE", "'catalogue' version 3 is not at ready state", ModelNotFound),
        ("UNAVAILABLE", "Exceeds maximum queue size", Overloaded),
        ("UNAVAILABLE", "Request timeout expired", Overloaded),
        ("RESOURCE_EXHAUSTED", "out of memory", Overloaded),
        ("UNAVAILABLE", "Socket closed", ServerUnavailable),
        ("DEADLINE_EXCEEDED", "late", DeadlineExceeded),
        ("INTERNAL", "Stub process is not healthy", ServerFault),
        ("UNKNOWN", "what?", ServerFault),
        ("UNIMPLEMENTED", "no such method", ServerFault),
        ("UNAUTHENTICATED", "who?", ServerFault),
        ("CANCELLED", "stopped", ServerFault),
    ],
)
def test_every_status_has_its_error(
    infer: Infer, served: tuple[str, Servicer], status: str, words: str, kind: type[FrontrowError]
):
    url, servicer = served
    servicer.failure = grpc.StatusCode[status], words
    with pytest.raises(FrontrowError) as error:
        infer(url, "catalogue", OFFSET, timeout_s=5, version="3")
    assert type(error.value) is kind
    message = str(error.value)
    if kind is InvalidRequest:
        assert message == words, "the server's words reach the caller as they are"
    else:
        assert url in message
        assert words in message or kind is DeadlineExceeded
        assert kind is ServerUnavailable or "'catalogue' version 3" in message


def test_an_answer_that_lacks_an_output_is_the_servers_fault(infer: Infer, served: tuple[str, Servicer]):
    served[1].leave_out = "title_names"
    with pytest.raises(ServerFault, match=r"'catalogue' at .* without \['title_names'\]"):
        infer(served[0], "catalogue", OFFSET, timeout_s=5)


def test_a_server_that_comes_up_late_is_found(closed_url: str):
    servicer = Servicer()
    with closing(GrpcTransport(closed_url)) as transport:
        with pytest.raises(ServerUnavailable):
            transport.infer("catalogue", OFFSET, timeout_s=1)
        server = grpc.server(ThreadPoolExecutor(1))
        service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(servicer, server)
        server.add_insecure_port(closed_url)
        server.start()
        deadline = time.monotonic() + 5
        while not servicer.requests and time.monotonic() < deadline:
            time.sleep(0.05)
            try:
                transport.infer("catalogue", OFFSET, timeout_s=1)
            except ServerUnavailable:
                continue
        server.stop(None).wait()
    assert servicer.requests


@pytest.mark.parametrize("make", [GrpcTransport, AsyncGrpcTransport, HomepageClient, AsyncHomepageClient])
def test_a_url_with_a_scheme_or_without_a_port_is_refused(make: Callable[[str], object]):
    with pytest.raises(InvalidRequest, match="'http://localhost:8001' carries a scheme"):
        make("http://localhost:8001")
    for url in ("localhost", "dns:///frontrow", "frontrow:grpc"):
        with pytest.raises(InvalidRequest, match=f"'{url}' names no port"):
            make(url)


def test_closing_twice_is_no_error(served: tuple[str, Servicer]):
    transport = GrpcTransport(served[0])
    transport.close()
    transport.close()

    async def twice() -> None:
        unused, used = AsyncGrpcTransport(served[0]), AsyncGrpcTransport(served[0])
        await used.infer("catalogue", OFFSET, timeout_s=5)
        for transport in (unused, used, used):
            await transport.close()

    asyncio.run(twice())


def test_a_closed_client_says_so(served: tuple[str, Servicer]):
    transport = GrpcTransport(served[0])
    transport.infer("catalogue", OFFSET, timeout_s=5)
    transport.close()
    with pytest.raises(InvalidRequest, match="this client is closed; make a new one"):
        transport.infer("catalogue", OFFSET, timeout_s=5)

    async def closed() -> None:
        used = AsyncGrpcTransport(served[0])
        await used.infer("catalogue", OFFSET, timeout_s=5)
        for transport in (used, AsyncGrpcTransport(served[0])):
            await transport.close()
            with pytest.raises(InvalidRequest, match="this client is closed"):
                await transport.infer("catalogue", OFFSET, timeout_s=5)

    asyncio.run(closed())


@pytest.mark.parametrize("url", [5, "", None], ids=repr)
def test_what_is_no_url_is_refused(url: object):
    for make in (HomepageClient, AsyncHomepageClient):
        with pytest.raises(InvalidRequest, match=f"url is {url!r}; gRPC takes host:port"):
            make(url)  # type: ignore[arg-type]


def test_a_server_on_this_host_is_reached_whatever_proxy_is_set(
    served: tuple[str, Servicer], monkeypatch: pytest.MonkeyPatch
):
    """To another host gRPC takes the proxy of the environment, as everything there does."""
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    assert GrpcTransport(served[0]).infer("catalogue", OFFSET, timeout_s=5)


# Several servers behind one name


@pytest.fixture
def two_servers() -> Iterator[tuple[int, Servicer, Servicer]]:
    """One port on two addresses, as two pods have it."""
    first, second = (grpc.server(ThreadPoolExecutor(4)) for _ in range(2))
    servicers = Servicer(), Servicer()
    port = first.add_insecure_port("127.0.0.1:0")
    assert second.add_insecure_port(f"127.0.0.2:{port}") == port
    for server, servicer in zip((first, second), servicers, strict=True):
        service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(servicer, server)
        server.start()
    yield port, *servicers
    for server in (first, second):
        server.stop(None).wait()


def ask_both(transport: GrpcTransport, *servicers: Servicer) -> None:
    """Until both are connected: the first that is gets all requests before."""
    deadline = time.monotonic() + 5
    while not all(s.requests for s in servicers) and time.monotonic() < deadline:
        transport.infer("catalogue", OFFSET, timeout_s=5)
    for servicer in servicers:
        servicer.requests.clear()


def test_a_dns_name_shares_requests_among_all_its_servers(two_servers: tuple[int, Servicer, Servicer]):
    port, first, second = two_servers
    with NameServer(["127.0.0.1", "127.0.0.2"]) as names, closing(GrpcTransport(names.url(port))) as transport:
        ask_both(transport, first, second)
        for _ in range(40):
            transport.infer("catalogue", OFFSET, timeout_s=5)
    assert len(first.requests) + len(second.requests) == 40
    assert abs(len(first.requests) - len(second.requests)) <= 4


def test_both_transports_know_dns_names(infer: Infer, two_servers: tuple[int, Servicer, Servicer]):
    with NameServer(["127.0.0.2"]) as names:
        assert infer(names.url(two_servers[0]), "catalogue", OFFSET, timeout_s=5)["title_ids"].shape == (1, 4)
    assert two_servers[2].requests


def test_what_one_server_refuses_another_answers(two_servers: tuple[int, Servicer, Servicer]):
    port, first, second = two_servers
    with NameServer(["127.0.0.1", "127.0.0.2"]) as names, closing(GrpcTransport(names.url(port))) as transport:
        ask_both(transport, first, second)
        first.failure = grpc.StatusCode.UNAVAILABLE, "Request for unknown model: 'catalogue' has no available versions"
        for _ in range(60):  # longer than the tokens of a wrong ratio last
            transport.infer("catalogue", OFFSET, timeout_s=5)
        assert first.requests


def test_overload_of_all_servers_is_not_repeated_for_ever(two_servers: tuple[int, Servicer, Servicer]):
    port, first, second = two_servers
    with NameServer(["127.0.0.1", "127.0.0.2"]) as names, closing(GrpcTransport(names.url(port))) as transport:
        ask_both(transport, first, second)
        first.failure = second.failure = grpc.StatusCode.UNAVAILABLE, "Exceeds maximum queue size"
        for _ in range(40):
            with pytest.raises(Overloaded):
                transport.infer("catalogue", OFFSET, timeout_s=5)
    assert len(first.requests) + len(second.requests) < 60, "without a limit three times 40"


# The package


def test_all_is_what_the_modules_make_public():
    modules = [getattr(clients, name) for name in ("client", "errors", "results", "transport")]
    public = {
        name
        for module in modules
        for name, value in vars(module).items()
        if not name.startswith("_") and getattr(value, "__module__", None) == module.__name__
    }
    assert clients.__all__ == sorted(public | {"Schema"}), "and Schema, which names the fields"
    assert all(hasattr(clients, name) for name in clients.__all__)


def test_importing_the_client_needs_neither_torch_nor_pydantic_nor_pyarrow():
    code = "import sys, frontrow.clients; print(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd="/")
    loaded = set(run.stdout.split())
    assert "frontrow.clients.client" in loaded
    assert loaded.isdisjoint({"torch", "pydantic", "pyarrow"})
