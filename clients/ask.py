"""The commands that ask a running server: `frontrow homepage`, `frontrow search`, `frontrow similar`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..foundation.schema import MAX_ROWS, MAX_TITLES
from . import show
from .show import console, print_json

if TYPE_CHECKING:
    from .client import HomepageClient
    from .results import Results

GRPC_PORT = 8001

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]
History = Annotated[
    Path | None, typer.Option(help="Events: a JSON list, or JSON Lines (one object a line); - for stdin.")
]
Member = Annotated[
    int | None, typer.Option(min=0, max=2**63 - 1, help="Member id; none with --history is an anonymous member.")
]
Titles = Annotated[int, typer.Option(min=1, max=MAX_TITLES, help="At most so many titles.")]
Context = Annotated[str | None, typer.Option(help='Request context as JSON, e.g. \'{"device": "TV"}\'.')]
Url = Annotated[str, typer.Option(help="host:port of the server's gRPC.")]
Timeout = Annotated[float, typer.Option(help="Seconds to wait for the answer.")]
LOCAL = f"localhost:{GRPC_PORT}"


def homepage(
    member: Member = None,
    history: History = None,
    rows: Annotated[int, typer.Option(min=1, max=MAX_ROWS, help="At most so many rows.")] = 10,
    titles: Annotated[int, typer.Option(min=1, max=MAX_TITLES, help="At most so many titles in a row.")] = 8,
    context: Context = None,
    url: Url = LOCAL,
    timeout: Timeout = 5.0,
    as_json: Json = False,
) -> None:
    """Show a member's homepage from a running server."""
    if member is None and history is None:
        raise ValueError("whose homepage? give --member ID, or --history events.json, or both")
    who = _who(history, context)
    with _client(url, timeout) as client:
        page = client.homepage(member, rows=rows, titles=titles, **who)
    if as_json:
        print_json(page.to_dict())
    else:
        show.homepage(console, page)


def search(
    query: Annotated[str, typer.Argument(help="What a member types: a name, its beginning, words of it.")],
    member: Member = None,
    history: History = None,
    titles: Titles = 20,
    context: Context = None,
    url: Url = LOCAL,
    timeout: Timeout = 5.0,
    as_json: Json = False,
) -> None:
    """Search titles by name on a running server.

    In a member's order where names fit alike.
    """
    who = _who(history, context)
    with _client(url, timeout) as client:
        found = client.search(query, member, titles=titles, **who)
    _print(found, as_json)


def similar(
    title: Annotated[str, typer.Argument(help="Its id, or its name as one would search for it.")],
    member: Member = None,
    history: History = None,
    titles: Titles = 20,
    context: Context = None,
    url: Url = LOCAL,
    timeout: Timeout = 5.0,
    as_json: Json = False,
) -> None:
    """Show titles like another from a running server.

    In a member's order; in order of similarity where no member is given.
    """
    who = _who(history, context)
    with _client(url, timeout) as client:
        title_id = _title_id(client, title, member)
        found = client.more_like_this(title_id, member, titles=titles, **who)
    _print(found, as_json, title_id=title_id)


def _who(history: Path | None, context: str | None) -> dict[str, Any]:
    """What a request says of its member besides the id."""
    return {
        "events": show.read_events(history) if history else [],
        "context": show.read_context(context) if context else None,
    }


def _title_id(client: HomepageClient, title: str, member: int | None) -> int:
    """The id that was given, or that of the title that a search for the name shows first."""
    if title.isdecimal() and int(title) in client.catalogue().titles:
        return int(title)
    found = client.search(title, member, titles=1).titles
    if not found:
        raise ValueError(f"no title has the id or a name like {title!r}; `frontrow search` finds names")
    return found[0].title_id


@contextmanager
def _client(url: str, timeout: float) -> Iterator[HomepageClient]:
    """A client whose errors speak of the command's options."""
    from .client import HomepageClient
    from .errors import FrontrowError, ServerUnavailable

    if not url.rpartition(":")[0] or not url.rpartition(":")[2].isdigit():
        raise ValueError(f"--url is {url!r}; give host:port, such as {LOCAL}")
    try:
        # No schema: names and scores are shown as they come, whatever fields the bundle was trained with.
        with HomepageClient(url, timeout_s=timeout, schema=None) as client:
            yield client
    except ServerUnavailable as error:
        if any(words in str(error) for words in ("HTTP/2", "Socket closed")):
            raise ServerUnavailable(f"{url} answers, but not gRPC; give the gRPC port (serve --grpc-port)") from error
        raise ServerUnavailable(f"{error}; a server elsewhere: --url host:port") from error
    except FrontrowError as error:  # the client's own words are for programmers
        raise type(error)(str(error).replace("timeout_s", "--timeout")) from error


def _print(found: Results, as_json: bool, **more: Any) -> None:
    if as_json:
        print_json(more | found.to_dict())
    else:
        show.results(console, found)
