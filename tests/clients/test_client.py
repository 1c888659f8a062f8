"""What the homepage client promises, against a fake server in memory that checks every input against WIRE."""

from __future__ import annotations

import asyncio
import json
import math
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from fake_server import AsyncFakeServer, FakeServer
from frontrow.clients import (
    AsyncHomepageClient,
    DeadlineExceeded,
    HomepageClient,
    InvalidRequest,
    ModelNotFound,
    SchemaMismatch,
    ServerFault,
    wire,
)
from frontrow.clients import client as client_module
from frontrow.foundation.schema import MAX_EVENTS, MAX_ROWS, MAX_TITLES, SOURCES, Schema, default_schema

PLAY = {"timestamp": 1721289600, "what": {"action_type": "play", "entity_id": 7}, "where": {"device": "TV"}}


def sent(**arguments: Any) -> dict[str, np.ndarray]:
    """The tensors that a call of `homepage` puts on the wire."""
    server = FakeServer()
    HomepageClient(transport=server).homepage(**arguments)
    return server.calls[0][2]


# What is sent


def test_a_bare_call_sends_every_input_and_is_anonymous():
    inputs = sent()
    assert inputs["member_id"].tolist() == [[-1]]
    assert inputs["page"].tolist() == [[10, 8]]
    for name in ("events", "context", "exclude", "surface", "experiment"):
        assert inputs[name].shape == (1, 0), name


def test_arguments_travel_as_they_are():
    later = PLAY | {"timestamp": 1721290000, "where": {"locale": "日本"}}
    context = {"timestamp": 1721299999, "device": "TV"}
    inputs = sent(member_id=42, events=[PLAY, later], context=context, rows=3, titles=5, exclude={9})
    assert inputs["member_id"].tolist() == [[42]]
    assert [json.loads(text) for text in inputs["events"][0]] == [PLAY, later]
    assert [json.loads(text) for text in inputs["context"][0]] == [context]
    assert inputs["page"].tolist() == [[3, 5]]
    assert inputs["exclude"].tolist() == [[9]]


def test_numpy_integers_are_integers():
    inputs = sent(member_id=np.int32(4), exclude=np.array([2**62, 1]))
    assert (inputs["member_id"].item(), inputs["exclude"].tolist()) == (4, [[2**62, 1]])


def test_the_largest_values_are_accepted():
    inputs = sent(member_id=2**63 - 1, rows=MAX_ROWS, titles=MAX_TITLES, exclude=[2**63 - 1])
    assert (inputs["member_id"].item(), inputs["exclude"].tolist()) == (2**63 - 1, [[2**63 - 1]])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"member_id": -1}, "member_id is -1, not within 0 to 9223372036854775807; None is anonymous"),
        ({"member_id": 2**63}, "member_id is 9223372036854775808"),
        ({"member_id": "42"}, "member_id is '42', not an integer"),
        ({"member_id": math.nan}, "member_id is nan, not an integer"),
        ({"member_id": True}, "member_id is True, not an integer"),
        ({"rows": 0}, f"rows is 0, not within 1 to {MAX_ROWS}"),
        ({"rows": MAX_ROWS + 1}, f"rows is {MAX_ROWS + 1}"),
        ({"titles": 0}, f"titles is 0, not within 1 to {MAX_TITLES}"),
        ({"titles": MAX_TITLES + 1}, f"titles is {MAX_TITLES + 1}"),
        ({"titles": 8.0}, "titles is 8.0, not an integer"),
        ({"events": PLAY}, "events is a dict, not a sequence"),
        ({"events": "play"}, "events is a str, not a sequence"),
        ({"events": iter([PLAY])}, "not a sequence of mappings"),
        ({"events": [PLAY, "play"]}, "events[1] is 'play', not a mapping"),
        ({"events": [PLAY, {"timestamp": {1}}]}, "events[1] is not JSON: Object of type set"),
        ({"events": [{"what": {"entity_id": np.int64(7)}}]}, "events[0] is not JSON: Object of type int64"),
        ({"events": [{"timestamp": math.nan}]}, "events[0] is not JSON: Out of range float"),
        ({"events": [{"where": {"device": "\ud800"}}]}, "events[0] is not JSON"),
        ({"events": [PLAY] * (MAX_EVENTS + 1)}, "100,001 events are more than 100,000"),
        ({"events": [{"x": "y" * 2**20}] * 33}, "events and context have 34,60"),
        ({"context": ["TV"]}, "context is ['TV'], not a mapping"),
        ({"context": {"timestamp": math.inf}}, "context is not JSON"),
        ({"exclude": 9}, "exclude is 9, not a sequence of title ids"),
        ({"exclude": [1, 2.5]}, "exclude[1] is 2.5, not an integer"),
        ({"exclude": [1, -2]}, "exclude[1] is -2, not within 0"),
        ({"exclude": [2**63]}, "exclude[0] is 9223372036854775808"),
        ({"timeout_s": "x"}, "timeout_s is 'x', not a positive"),
        ({"timeout_s": True}, "timeout_s is True, not a positive"),
        ({"timeout_s": 0}, "timeout_s is 0, not a positive"),
        ({"timeout_s": math.nan}, "timeout_s is nan"),
    ],
    ids=lambda value: value if isinstance(value, str) else next(iter(value)),
)
def test_a_wrong_argument_is_named_and_nothing_is_sent(arguments: dict[str, Any], words: str):
    server = FakeServer()
    with pytest.raises(InvalidRequest) as error:
        HomepageClient(transport=server).homepage(**arguments)
    assert words in str(error.value)
    assert len(str(error.value)) < 300
    assert isinstance(error.value, ValueError)
    assert server.calls == []


def test_a_cyclic_event_is_refused():
    event: dict[str, Any] = {}
    event["what"] = event
    with pytest.raises(InvalidRequest, match=r"events\[0\] is not JSON"):
        sent(events=[event])


def test_a_call_may_have_its_own_timeout_and_the_catalogue_never_less_than_ten_seconds():
    server = FakeServer()
    client = HomepageClient(transport=server, timeout_s=0.5)
    client.homepage()
    client.homepage(timeout_s=0.2)
    limits = [(model, limit) for model, _, _, limit in server.calls]
    assert limits == [("homepage", 0.5), ("catalogue", 10.0), ("catalogue", 10.0), ("homepage", 0.2)]


# What comes back


def test_the_page_as_json():
    page = HomepageClient(transport=FakeServer(fallback="unknown_member")).homepage(42)
    expected = {
        "member_id": 42,
        "bundle_version": 1,
        "fallback": "unknown_member",
        "rows": [
            {
                "row_id": 3,
                "label": "Because you watched Heat",
                "score": 0.5,
                "pinned": False,
                "titles": [
                    {
                        "title_id": 7,
                        "name": "Amélie",
                        "score": 2.0,
                        "source": "embedding",
                        "probability": math.exp(-2.0),
                    },
                    {"title_id": 9, "name": "Up", "score": 1.5, "source": "popular", "probability": math.exp(-2.5)},
                ],
            },
            {
                "row_id": 1,
                "label": "Popular",
                "score": 0.25,
                "pinned": True,
                "titles": [{"title_id": 8, "name": "Heat", "score": 1.0, "source": "history", "probability": None}],
            },
        ],
    }
    assert page.to_dict() == expected
    assert json.loads(json.dumps(page.to_dict())) == expected
    assert page.info["stages_ms"] == {"rank": 1.5}
    assert hash(page) == hash(page)


def test_a_server_that_gives_no_normaliser_gives_no_probabilities():
    page = HomepageClient(transport=FakeServer(level=None)).homepage(42)
    assert {title.probability for row in page.rows for title in row.titles} == {None}


def test_an_anonymous_page_has_no_member():
    page = HomepageClient(transport=FakeServer()).homepage()
    assert (page.member_id, page.fallback) == (None, None)


def test_an_empty_page_is_a_page():
    class Empty(FakeServer):
        def _homepage(self) -> dict[str, np.ndarray]:
            shapes = {"row_ids": (1, 0), "row_scores": (1, 0)}
            whole = super()._homepage()
            cut = {n: np.empty(shapes.get(n, (1, 0, 0)), a.dtype) for n, a in whole.items() if n != "info"}
            return cut | {"info": whole["info"]}

    assert HomepageClient(transport=Empty()).homepage().rows == ()


def test_what_the_catalogue_lacks_has_a_stand_in():
    catalogue = HomepageClient(transport=FakeServer(bundles={1: {7: "Amélie"}})).catalogue()
    assert catalogue.name(8) == "title 8"
    assert catalogue.label(3, 8) == "Because you watched title 8"
    assert catalogue.label(3) == "Because you watched …"
    assert catalogue.label(99) == "row 99"


def test_a_title_named_like_a_template_stays_as_it_is():
    catalogue = HomepageClient(transport=FakeServer(bundles={1: {8: "{title} {0}"}})).catalogue()
    assert catalogue.label(3, 8) == "Because you watched {title} {0}"


def test_a_source_of_a_newer_server_has_a_stand_in():
    assert wire.source_name(len(SOURCES) - 1) == SOURCES[-1]
    assert wire.source_name(200) == "source 200"


# The catalogue


def test_the_catalogue_is_read_in_slices_of_one_version_and_once():
    server = FakeServer()
    client = HomepageClient(transport=server)
    client.homepage()
    client.homepage()
    assert server.asked("homepage") == [("", -1), ("", -1)]
    assert server.asked("catalogue") == [("1", 0), ("1", 2)]


def test_a_catalogue_without_titles_is_a_catalogue():
    assert HomepageClient(transport=FakeServer(bundles={1: {}})).catalogue().titles == {}


def test_catalogue_asks_for_the_newest_and_warms_the_cache():
    server = FakeServer()
    client = HomepageClient(transport=server)
    assert client.catalogue().titles == server.bundles[1]
    client.homepage()
    assert server.asked("catalogue") == [("", 0), ("1", 2)]


def test_a_change_of_bundles_amid_reading_does_not_mix_two_catalogues():
    server = FakeServer()
    server.during_catalogue = lambda: server.bundles.setdefault(2, {1: "new"})  # type: ignore[assignment]
    catalogue = HomepageClient(transport=server).catalogue()
    assert (catalogue.bundle_version, catalogue.titles) == (1, server.bundles[1])


def test_another_bundle_under_the_same_number_brings_its_names():
    """A bundle that was made anew, perhaps on another server."""
    server = FakeServer(chunk=50)
    client = HomepageClient(transport=server)
    assert client.homepage().rows[1].titles[0].name == "Heat"
    server.bundles, server.fingerprint = {1: {8: "Heat (1995)"}}, "b"
    assert client.homepage().rows[1].titles[0].name == "Heat (1995)"
    assert client.catalogue().fingerprint == "b"


def test_two_bundles_under_one_number_do_not_mix():
    server = FakeServer()
    server.during_catalogue = lambda: setattr(server, "fingerprint", "b")
    with pytest.raises(ServerFault, match="catalogue 1 was asked for, 1 answered with other content"):
        HomepageClient(transport=server).homepage()


def test_a_new_bundle_brings_its_names_and_two_are_kept():
    server = FakeServer(chunk=50)
    client = HomepageClient(transport=server)
    assert client.homepage().rows[1].titles[0].name == "Heat"
    server.bundles |= {2: {8: "Heat (1995)"}, 3: {8: "Heat!"}}
    for version in (2, 1, 2, 1):
        server.page_version = version
        assert client.homepage().bundle_version == version
    assert client.homepage().rows[1].titles[0].name == "Heat"
    assert server.asked("catalogue") == [("1", 0), ("2", 0)]
    for version in (3, 2, 1):
        server.page_version = version
        client.homepage()
    assert [v for v, _ in server.asked("catalogue")] == ["1", "2", "3", "1"], "the oldest made room"


def test_asking_for_the_newest_again_does_not_push_out_the_other():
    server = FakeServer(bundles={1: {8: "old"}, 2: {8: "new"}})
    client = HomepageClient(transport=server)
    for version in (1, 2):
        server.page_version = version
        client.homepage()
    client.catalogue()
    server.page_version = 1
    assert client.homepage().rows[1].titles[0].name == "old"
    assert [v for v, _ in server.asked("catalogue")] == ["1", "2", ""]


def test_threads_that_meet_a_new_bundle_together_read_its_catalogue_once():
    server = FakeServer(delay_s=0.02)
    client = HomepageClient(transport=server)
    start = threading.Barrier(8)

    def one(member_id: int) -> dict[str, Any]:
        start.wait()
        return client.homepage(member_id).to_dict()["rows"]

    with ThreadPoolExecutor(8) as pool:
        pages = list(pool.map(one, range(8)))
    assert all(page == pages[0] for page in pages)
    assert server.asked("catalogue") == [("1", 0), ("1", 2)]


def test_a_thread_does_not_wait_forever_for_another_ones_catalogue(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(client_module, "_CATALOGUE_TIMEOUT_S", 0.05)
    server = FakeServer(delay_s=0.3)
    client = HomepageClient(transport=server, timeout_s=0.05)
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(client.catalogue)
        while not server.calls:
            time.sleep(0.001)
        with pytest.raises(DeadlineExceeded, match="still reading the catalogue"):
            client.catalogue()
        assert first.result().bundle_version == 1


def test_a_failed_reading_leaves_the_client_usable():
    server = FakeServer()
    server.page_version = 5
    client = HomepageClient(transport=server)
    with pytest.raises(ModelNotFound):
        client.homepage()
    server.page_version = None
    assert client.homepage().bundle_version == 1


# A server that is another one than thought


def test_another_schema_is_refused_with_both_hashes_and_the_cure():
    ours = default_schema()
    other = Schema(ours.fields[:-1], ours.title_fields)
    server = FakeServer(schema_hash=other.hash)
    for ask in (HomepageClient(transport=server).homepage, HomepageClient(transport=server).catalogue):
        with pytest.raises(SchemaMismatch) as error:
            ask()
        for words in (ours.hash, other.hash, "schema=Schema.load(", "upgrade"):
            assert words in str(error.value)
    assert HomepageClient(transport=server, schema=other).homepage().bundle_version == 1
    assert HomepageClient(transport=server, schema=None).homepage().bundle_version == 1


def test_a_new_bundle_with_another_schema_is_refused_when_it_comes():
    server = FakeServer()
    client = HomepageClient(transport=server)
    client.homepage()
    server.bundles[2], server.schema_hash = {}, "other"
    with pytest.raises(SchemaMismatch, match="bundle 2 has schema other"):
        client.homepage()


@pytest.mark.parametrize("info", [b"", b"[]", b"{}", b'{"bundle_version": 1}', b"\xff"], ids=repr)
def test_an_odd_info_is_the_servers_fault(info: bytes):
    class Odd(FakeServer):
        def _info(self, version: int, **more: Any) -> np.ndarray:
            return np.array([[info]], np.object_)

    with pytest.raises(ServerFault, match="odd info from model 'homepage'"):
        HomepageClient(transport=Odd()).homepage()


def test_a_catalogue_that_ends_early_or_is_of_another_version_is_the_servers_fault():
    with pytest.raises(ServerFault, match="catalogue 1 ends at 0 of 3 titles"):
        HomepageClient(transport=FakeServer(chunk=0)).catalogue()

    class Confused(FakeServer):
        def _catalogue(self, inputs: dict[str, np.ndarray], version: str) -> dict[str, np.ndarray]:
            return super()._catalogue(inputs, "")

    with pytest.raises(ServerFault, match="catalogue 5 was asked for, 1 answered"):
        HomepageClient(transport=Confused(page_version=5)).homepage()


# The twin


def test_the_asyncio_client_gives_identical_results():
    arguments: dict[str, Any] = {
        "member_id": 4,
        "events": [PLAY],
        "context": {"device": "TV"},
        "exclude": [1],
    }
    ours, theirs = FakeServer(), FakeServer()
    page = HomepageClient(transport=ours).homepage(**arguments)

    async def ask() -> None:
        async with AsyncHomepageClient(transport=AsyncFakeServer(theirs)) as client:
            assert await client.homepage(**arguments) == page
            together = await asyncio.gather(*(client.homepage(i) for i in range(8)))
            assert all(p.rows == page.rows for p in together)
            assert (await client.catalogue()).titles == theirs.bundles[1]
            with pytest.raises(InvalidRequest, match="rows is 0"):
                await client.homepage(rows=0)

    asyncio.run(ask())
    assert theirs.closed
    for mine, its in zip(ours.calls, theirs.calls, strict=False):
        assert repr(mine) == repr(its)


def test_asyncio_tasks_that_meet_a_new_bundle_together_read_its_catalogue_once():
    server = FakeServer()

    async def ask() -> None:
        client = AsyncHomepageClient(transport=AsyncFakeServer(server))
        await asyncio.gather(*(client.homepage(i) for i in range(8)))

    asyncio.run(ask())
    assert server.asked("catalogue") == [("1", 0), ("1", 2)]


def test_a_context_manager_closes_the_transport():
    server = FakeServer()
    with HomepageClient(transport=server) as client:
        client.homepage()
        assert not server.closed
    assert server.closed
