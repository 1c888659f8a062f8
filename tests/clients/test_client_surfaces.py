"""What `search` and `more_like_this` send and give back, against a fake server in memory."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import numpy as np
import pytest
from fake_server import AsyncFakeServer, FakeServer
from frontrow.clients import AsyncHomepageClient, HomepageClient, InvalidRequest, Results, ServerFault
from frontrow.foundation.schema import MAX_TEXT

PLAY = {"timestamp": 1721289600, "what": {"action_type": "play", "entity_id": 7}}


def sent(call: str, *arguments: Any, **named: Any) -> dict[str, Any]:
    """What a call puts on the wire, as plain values."""
    server = FakeServer()
    getattr(HomepageClient(transport=server), call)(*arguments, **named)
    inputs = {name: array[0].tolist() for name, array in server.calls[0][2].items()}
    return inputs | {"context": json.loads(inputs["context"][0])}


def test_a_search_travels_in_the_context() -> None:
    inputs = sent("search", "alién", 42, events=[PLAY], context={"device": "TV"}, titles=5, exclude=[9])
    assert inputs["surface"] == [b"search"]
    assert inputs["context"] == {"device": "TV", "query": "alién"}
    assert (inputs["member_id"], inputs["page"], inputs["exclude"]) == ([42], [1, 5], [9])
    assert json.loads(inputs["events"][0]) == PLAY


def test_titles_like_another_travel_in_the_context() -> None:
    inputs = sent("more_like_this", title_id=np.int64(50))
    assert inputs["surface"] == [b"more_like_this"]
    assert inputs["context"] == {"title_id": 50}
    assert (inputs["member_id"], inputs["page"]) == ([-1], [1, 20])


def test_the_callers_context_stays_as_it_is() -> None:
    context = {"device": "TV"}
    sent("search", "alien", context=context)
    assert context == {"device": "TV"}


@pytest.mark.parametrize(
    ("call", "arguments", "words"),
    [
        ("search", {"query": None}, "query is None, not a text"),
        ("search", {"query": 5}, "query is 5, not a text"),
        ("search", {"query": b"alien"}, "query is b'alien', not a text"),
        ("search", {"query": "x" * (MAX_TEXT + 1)}, "query has 257 characters, more than 256"),
        ("search", {"query": "\ud800"}, "context is not JSON"),
        ("search", {"query": "x", "titles": 0}, "titles is 0"),
        ("search", {"query": "x", "context": ["TV"]}, "context is ['TV'], not a mapping"),
        ("search", {"query": "x", "member_id": -1}, "member_id is -1"),
        ("more_like_this", {"title_id": "50"}, "title_id is '50', not an integer"),
        ("more_like_this", {"title_id": -1}, "title_id is -1"),
        ("more_like_this", {"title_id": True}, "title_id is True"),
        ("more_like_this", {"title_id": 5, "timeout_s": 0}, "timeout_s is 0"),
    ],
)
def test_a_wrong_argument_is_named_and_nothing_is_sent(call: str, arguments: dict[str, Any], words: str) -> None:
    server = FakeServer()
    with pytest.raises(InvalidRequest) as error:
        getattr(HomepageClient(transport=server), call)(**arguments)
    assert words in str(error.value)
    assert server.calls == []


def test_an_empty_query_is_for_the_server_to_answer() -> None:
    assert sent("search", "")["context"] == {"query": ""}


def test_the_answer_as_json() -> None:
    found = HomepageClient(transport=FakeServer(fallback="no_match")).search("heat", 42)
    assert isinstance(found, Results)
    expected = {
        "member_id": 42,
        "bundle_version": 1,
        "surface": "search",
        "label": "More like Up",
        "fallback": "no_match",
        "titles": [
            {"title_id": 8, "name": "Heat", "score": 2.0, "source": "lexical", "probability": None},
            {"title_id": 7, "name": "Amélie", "score": 1.5, "source": "lexical", "probability": None},
        ],
    }
    assert found.to_dict() == expected
    assert found.info["surface"] == "search"
    assert hash(found) == hash(found)


def test_a_server_that_does_not_know_surfaces_is_named() -> None:
    class Older(FakeServer):
        def _row(self, surface: str) -> dict[str, np.ndarray]:
            return self._homepage()

    with pytest.raises(ServerFault, match="a surface of one row was asked for, 2 rows came"):
        HomepageClient(transport=Older()).search("heat")


def test_a_question_in_the_context_too_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="context has 'query' too: 'alien'"):
        HomepageClient(transport=FakeServer()).search("heat", context={"query": "alien"})


def test_the_asyncio_client_does_the_same() -> None:
    async def ask() -> list[Results]:
        async with AsyncHomepageClient(transport=AsyncFakeServer(server)) as client:
            return await asyncio.gather(client.search("heat", 42), client.more_like_this(9, 42))

    server = FakeServer()
    found, similar = asyncio.run(ask())
    client = HomepageClient(transport=FakeServer())
    assert found.to_dict() == client.search("heat", 42).to_dict()
    assert similar.to_dict() == client.more_like_this(9, 42).to_dict()
