"""Ask a Frontrow server for a member's homepage: `HomepageClient().homepage(42)`. And `search`, and `more_like_this`.

The flow, the same for both clients: arguments → tensors → transport → tensors → page, whose ids get their
names from the catalogue of the bundle that ranked it. The two classes hold only what differs between threads
and asyncio.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Generator, Iterable, Mapping, Sequence
from typing import Any, Self

import numpy as np

from ..foundation.schema import Schema, default_schema
from .errors import DeadlineExceeded, ServerFault
from .results import Catalogue, Homepage, Results
from .transport import AsyncGrpcTransport, AsyncTransport, GrpcTransport, Transport
from .wire import (
    Tensors,
    homepage_inputs,
    read_homepage,
    read_info,
    read_results,
    search_inputs,
    similar_inputs,
    timeout_of,
)

# A slice of a catalogue is megabytes, read once per bundle: a page's deadline would be too short for it.
_CATALOGUE_TIMEOUT_S = 10.0
# While a fleet changes bundles, pages come from the old one and the new one in turn.
_CATALOGUES_KEPT = 2
_STILL_READING = "another call is still reading the catalogue; look at the server's load"
_DEFAULT_SCHEMA = default_schema()


_Bundle = tuple[int, str]  # version, fingerprint of the content


def _bundle(info: Mapping[str, Any]) -> _Bundle:
    return int(info["bundle_version"]), str(info.get("bundle_fingerprint", ""))


class _Core:
    """What both clients share: settings, the catalogues kept, and the order of the calls that read one."""

    def __init__(self, timeout_s: float, schema: Schema | None) -> None:
        self._timeout_s = timeout_of(timeout_s)
        self._catalogue_timeout_s = max(self._timeout_s, _CATALOGUE_TIMEOUT_S)
        self._schema = schema
        self._catalogues: dict[_Bundle, Catalogue] = {}

    def _reading(self, bundle: _Bundle | None) -> Generator[tuple[Tensors, str], Tensors, Catalogue]:
        """Yields (inputs, version) of each call of `catalogue`, is sent its outputs, returns the whole.

        bundle None is the newest. To be run under the client's lock, so that each catalogue is read once.
        """
        titles: dict[int, str] = {}
        offset = 0
        while bundle is None or bundle not in self._catalogues:
            wanted = "" if bundle is None else str(bundle[0])
            outputs = yield {"title_offset": np.array([[offset]], np.int64)}, wanted
            info = read_info("catalogue", outputs, self._schema, "titles", "rows")
            found = _bundle(info)
            if bundle not in (None, found):
                raise ServerFault(
                    f"catalogue {wanted} was asked for, {found[0]} answered"
                    + (
                        f" with other content; another bundle {wanted} is being rolled out?"
                        if wanted == str(found[0])
                        else ""
                    )
                )
            # From here on "the newest" too is one bundle: a change of bundles must not mix two catalogues.
            bundle = found
            ids, names = outputs["title_ids"][0].tolist(), outputs["title_names"][0].tolist()
            titles.update(zip(ids, (name.decode(errors="replace") for name in names), strict=True))
            offset += len(ids)
            if offset >= info["titles"]:
                rows = {row["row_id"]: row["label"] for row in info["rows"]}
                self._keep(bundle, Catalogue(*bundle, info["schema_hash"], titles, rows))
            elif not ids:
                raise ServerFault(f"catalogue {bundle[0]} ends at {offset} of {info['titles']} titles")
        return self._catalogues[bundle]

    def _keep(self, bundle: _Bundle, catalogue: Catalogue) -> None:
        self._catalogues.pop(bundle, None)
        while len(self._catalogues) >= _CATALOGUES_KEPT:
            del self._catalogues[next(iter(self._catalogues))]
        self._catalogues[bundle] = catalogue


class HomepageClient(_Core):
    """A client for threads: one instance serves them all. A context manager; `close` disconnects.

    url: "host:port" of the server's gRPC. timeout_s: seconds for a page, unless a call says otherwise.
    schema: the fields that the server's bundle must have; None checks nothing. background: nobody waits for these pages
    (made ahead, or for a mail): the server makes others first, and refuses these first. transport: in place of gRPC.
    Raises InvalidRequest for a timeout that is not positive or a url with a scheme.
    """

    def __init__(
        self,
        url: str = "localhost:8001",
        *,
        timeout_s: float = 1.0,
        schema: Schema | None = _DEFAULT_SCHEMA,
        background: bool = False,
        transport: Transport | None = None,
    ) -> None:
        super().__init__(timeout_s, schema)
        self._transport = GrpcTransport(url, background=background) if transport is None else transport
        self._lock = threading.Lock()

    def homepage(
        self,
        member_id: int | None = None,
        *,
        events: Sequence[Mapping[str, Any]] = (),
        context: Mapping[str, Any] | None = None,
        rows: int = 10,
        titles: int = 8,
        exclude: Iterable[int] = (),
        timeout_s: float | None = None,
    ) -> Homepage:
        """The page of one member.

        member_id: from 0; None is an anonymous member. events: in the public shape, oldest first; those
        newer than what the server has of the member, or all that an anonymous one did; at most MAX_EVENTS, with the
        context at most MAX_EVENT_BYTES as JSON.
        context: of this request, some of {"timestamp", "device", "canvas", "locale"}. rows, titles: at most
        so many rows, and titles in a row (MAX_ROWS, MAX_TITLES). exclude: title ids that must not appear.

        The first page of each bundle also reads the bundle's catalogue; each call for it may take 10 s, or
        the client's timeout if longer. Call `catalogue()` when your service starts, so that no member waits.

        Raises any FrontrowError; `frontrow.clients.errors` draws them.
        """
        inputs = homepage_inputs(member_id, events, context, rows, titles, exclude)
        return read_homepage(member_id, *self._ask(inputs, timeout_s))

    def search(
        self,
        query: str,
        member_id: int | None = None,
        *,
        events: Sequence[Mapping[str, Any]] = (),
        context: Mapping[str, Any] | None = None,
        titles: int = 20,
        exclude: Iterable[int] = (),
        timeout_s: float | None = None,
    ) -> Results:
        """Titles by what a member typed, at most MAX_TEXT characters: by how well the name fits (all of it, its
        beginning, its words, small typos), and where names fit alike by the member's scores. Titles that the member has
        seen are among them. `info["matches"]` says how many fitted how. Otherwise as `homepage`."""
        inputs = search_inputs(query, member_id, context, events=events, titles=titles, exclude=exclude)
        return read_results(member_id, *self._ask(inputs, timeout_s))

    def more_like_this(
        self,
        title_id: int,
        member_id: int | None = None,
        *,
        events: Sequence[Mapping[str, Any]] = (),
        context: Mapping[str, Any] | None = None,
        titles: int = 20,
        exclude: Iterable[int] = (),
        timeout_s: float | None = None,
    ) -> Results:
        """Titles like another that the member has not seen, in order of the member's scores; in order of similarity,
        which is then their score, if nothing is known of the member. Otherwise as `homepage`."""
        inputs = similar_inputs(title_id, member_id, context, events=events, titles=titles, exclude=exclude)
        return read_results(member_id, *self._ask(inputs, timeout_s))

    def _ask(self, inputs: Tensors, timeout_s: float | None) -> tuple[Tensors, dict[str, Any], Catalogue]:
        limit = self._timeout_s if timeout_s is None else timeout_of(timeout_s)
        outputs = self._transport.infer("homepage", inputs, timeout_s=limit)
        info = read_info("homepage", outputs, self._schema)
        bundle = _bundle(info)
        return outputs, info, self._catalogues.get(bundle) or self._read(bundle)

    def catalogue(self) -> Catalogue:
        """The names of titles and rows in the server's newest bundle. Raises as `homepage` does."""
        return self._read(None)

    def _read(self, bundle: _Bundle | None) -> Catalogue:
        limit = self._catalogue_timeout_s
        if not self._lock.acquire(timeout=limit):
            raise DeadlineExceeded(_STILL_READING)
        try:
            reading = self._reading(bundle)
            inputs, wanted = next(reading)
            while True:
                outputs = self._transport.infer("catalogue", inputs, timeout_s=limit, version=wanted)
                inputs, wanted = reading.send(outputs)
        except StopIteration as done:
            return done.value
        finally:
            self._lock.release()

    def close(self) -> None:
        """End the connection. Closing twice is no error."""
        self._transport.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


class AsyncHomepageClient(_Core):
    """The same client for asyncio, to be used within one event loop. See HomepageClient."""

    def __init__(
        self,
        url: str = "localhost:8001",
        *,
        timeout_s: float = 1.0,
        schema: Schema | None = _DEFAULT_SCHEMA,
        background: bool = False,
        transport: AsyncTransport | None = None,
    ) -> None:
        super().__init__(timeout_s, schema)
        self._transport = AsyncGrpcTransport(url, background=background) if transport is None else transport
        self._lock = asyncio.Lock()

    async def homepage(
        self,
        member_id: int | None = None,
        *,
        events: Sequence[Mapping[str, Any]] = (),
        context: Mapping[str, Any] | None = None,
        rows: int = 10,
        titles: int = 8,
        exclude: Iterable[int] = (),
        timeout_s: float | None = None,
    ) -> Homepage:
        """See HomepageClient.homepage."""
        inputs = homepage_inputs(member_id, events, context, rows, titles, exclude)
        return read_homepage(member_id, *await self._ask(inputs, timeout_s))

    async def search(
        self,
        query: str,
        member_id: int | None = None,
        *,
        events: Sequence[Mapping[str, Any]] = (),
        context: Mapping[str, Any] | None = None,
        titles: int = 20,
        exclude: Iterable[int] = (),
        timeout_s: float | None = None,
    ) -> Results:
        """See HomepageClient.search."""
        inputs = search_inputs(query, member_id, context, events=events, titles=titles, exclude=exclude)
        return read_results(member_id, *await self._ask(inputs, timeout_s))

    async def more_like_this(
        self,
        title_id: int,
        member_id: int | None = None,
        *,
        events: Sequence[Mapping[str, Any]] = (),
        context: Mapping[str, Any] | None = None,
        titles: int = 20,
        exclude: Iterable[int] = (),
        timeout_s: float | None = None,
    ) -> Results:
        """See HomepageClient.more_like_this."""
        inputs = similar_inputs(title_id, member_id, context, events=events, titles=titles, exclude=exclude)
        return read_results(member_id, *await self._ask(inputs, timeout_s))

    async def _ask(self, inputs: Tensors, timeout_s: float | None) -> tuple[Tensors, dict[str, Any], Catalogue]:
        limit = self._timeout_s if timeout_s is None else timeout_of(timeout_s)
        outputs = await self._transport.infer("homepage", inputs, timeout_s=limit)
        info = read_info("homepage", outputs, self._schema)
        bundle = _bundle(info)
        return outputs, info, self._catalogues.get(bundle) or await self._read(bundle)

    async def catalogue(self) -> Catalogue:
        """See HomepageClient.catalogue."""
        return await self._read(None)

    async def _read(self, bundle: _Bundle | None) -> Catalogue:
        limit = self._catalogue_timeout_s
        try:
            await asyncio.wait_for(self._lock.acquire(), limit)
        except TimeoutError:
            raise DeadlineExceeded(_STILL_READING) from None
        try:
            reading = self._reading(bundle)
            inputs, wanted = next(reading)
            while True:
                outputs = await self._transport.infer("catalogue", inputs, timeout_s=limit, version=wanted)
                inputs, wanted = reading.send(outputs)
        except StopIteration as done:
            return done.value
        finally:
            self._lock.release()

    async def close(self) -> None:
        """End the connection. Closing twice is no error."""
        await self._transport.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()
