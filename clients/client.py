"""Ask a Frontrow server for a member's homepage: `HomepageClient().homepage(42)`.

The flow, the same for both clients: arguments → tensors → transport → tensors → page, whose ids get their
names from the catalogue of the bundle that ranked it. The two classes hold only what differs between threads
and asyncio. Shapes are those of `WIRE["homepage"]` and `WIRE["catalogue"]`, with a batch dimension of 1.
"""

from __future__ import annotations

import asyncio
import json
import math
import reprlib
import threading
from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np

from ..foundation.schema import (
    ANONYMOUS,
    MAX_EVENT_BYTES,
    MAX_EVENTS,
    MAX_ROWS,
    MAX_TITLES,
    SOURCES,
    Schema,
    default_schema,
)
from .errors import DeadlineExceeded, InvalidRequest, SchemaMismatch, ServerFault
from .transport import AsyncGrpcTransport, AsyncTransport, GrpcTransport, Transport

# A slice of a catalogue is megabytes, read once per bundle: a page's deadline would be too short for it.
_CATALOGUE_TIMEOUT_S = 10.0
# While a fleet changes bundles, pages come from the old one and the new one in turn.
_CATALOGUES_KEPT = 2
_STILL_READING = "another call is still reading the catalogue; look at the server's load"
_DEFAULT_SCHEMA = default_schema()


@dataclass(frozen=True, slots=True)
class Title:
    """A title on a page. score: of the title for this member. source: how it was found, one of SOURCES."""

    title_id: int
    name: str
    score: float
    source: str


@dataclass(frozen=True, slots=True)
class Row:
    """A row of a page, best title first. label: what a member reads above it, such as "TV Comedies". pinned: whether it
    stands at its place whatever its score."""

    row_id: int
    label: str
    score: float
    titles: tuple[Title, ...]
    pinned: bool = False


@dataclass(frozen=True, slots=True)
class Homepage:
    """A member's page, top row first.

    member_id: None if anonymous. bundle_version: of the bundle that ranked it. fallback: None, or why the
    page is not personal (or is empty: "nothing_left"). info: all that the server says of it: `counts` of odd events,
    `unknown` names of the first unknown values and keys, `pinned` row ids, `stages_ms`.
    """

    member_id: int | None
    bundle_version: int
    fallback: str | None
    rows: tuple[Row, ...]
    info: Mapping[str, Any] = field(hash=False, repr=False)

    def to_dict(self) -> dict[str, Any]:
        """The page as plain values for JSON, without `info`."""
        return {
            "member_id": self.member_id,
            "bundle_version": self.bundle_version,
            "fallback": self.fallback,
            "rows": [
                {
                    "row_id": row.row_id,
                    "label": row.label,
                    "score": row.score,
                    "pinned": row.pinned,
                    "titles": [
                        {"title_id": t.title_id, "name": t.name, "score": t.score, "source": t.source}
                        for t in row.titles
                    ],
                }
                for row in self.rows
            ],
        }


@dataclass(frozen=True, slots=True)
class Catalogue:
    """The names of one bundle. titles: name by title id. rows: label by row id, with `{title}` left open. fingerprint:
    of the bundle's content, as another one may bear the same number some day."""

    bundle_version: int
    fingerprint: str
    schema_hash: str
    titles: Mapping[int, str] = field(hash=False, repr=False)
    rows: Mapping[int, str] = field(hash=False, repr=False)

    def name(self, title_id: int) -> str:
        """The title's name; "title <id>" if the catalogue lacks it: a page is worth more than its names."""
        return self.titles.get(title_id, f"title {title_id}")

    def label(self, row_id: int, title_id: int | None = None) -> str:
        """The row's label with the title's name for `{title}`, or an ellipsis if no title is given."""
        name = "…" if title_id is None else self.name(title_id)
        return self.rows.get(row_id, f"row {row_id}").replace("{title}", name)


# Inputs and outputs: pure functions between Python values and tensors.

Tensors = dict[str, np.ndarray]


def _homepage_inputs(
    member_id: int | None,
    events: Sequence[Mapping[str, Any]],
    context: Mapping[str, Any] | None,
    rows: int,
    titles: int,
    exclude: Iterable[int],
) -> Tensors:
    """Every input, empty ones as [1, 0]: Triton Server batches only requests that carry the same inputs."""
    if isinstance(events, str | bytes) or not isinstance(events, Sequence):
        raise InvalidRequest(f"events is a {type(events).__name__}, not a sequence of mappings")
    if len(events) > MAX_EVENTS:
        raise InvalidRequest(f"{len(events):,} events are more than {MAX_EVENTS:,}; send the newest")
    if not isinstance(exclude, Iterable):
        raise InvalidRequest(f"exclude is {exclude!r}, not a sequence of title ids")
    who = ANONYMOUS if member_id is None else _integer("member_id", member_id, 0, hint="; None is anonymous")
    texts = [_json(f"events[{i}]", event) for i, event in enumerate(events)]
    contexts = [] if context is None else [_json("context", context)]
    if (size := sum(map(len, texts + contexts))) > MAX_EVENT_BYTES:
        raise InvalidRequest(f"events and context have {size:,} bytes, more than {MAX_EVENT_BYTES:,}; send the newest")
    page = [_integer("rows", rows, 1, MAX_ROWS), _integer("titles", titles, 1, MAX_TITLES)]
    return {
        "member_id": np.array([[who]], np.int64),
        "events": _texts(texts),
        "context": _texts(contexts),
        "page": np.array([page], np.int32),
        "exclude": np.array([[_integer(f"exclude[{i}]", t, 0) for i, t in enumerate(exclude)]], np.int64),
        "surface": _texts([]),
        "experiment": _texts([]),
    }


def _integer(name: str, value: Any, low: int, high: int = 2**63 - 1, *, hint: str = "") -> int:
    """`value` as an int within [low, high]; takes numpy's integers, refuses True and 1.0."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise InvalidRequest(f"{name} is {reprlib.repr(value)}, not an integer{hint}")
    if not low <= value <= high:
        raise InvalidRequest(f"{name} is {value}, not within {low} to {high}{hint}")
    return int(value)


def _json(name: str, value: Any) -> bytes:
    if not isinstance(value, Mapping):
        raise InvalidRequest(f"{name} is {reprlib.repr(value)}, not a mapping")
    try:
        # A lone surrogate passes dumps() and fails in encode(), with a ValueError too.
        return json.dumps(dict(value), allow_nan=False, ensure_ascii=False, separators=(",", ":")).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidRequest(f"{name} is not JSON: {error}, in {reprlib.repr(value)}") from error


def _texts(texts: list[bytes]) -> np.ndarray:
    return np.array([texts], np.object_)


def _read_info(model: str, outputs: Tensors, schema: Schema | None, *keys: str) -> dict[str, Any]:
    """The `info` of an answer, which must hold `keys`. Raises SchemaMismatch unless it is of `schema`."""
    try:
        info = json.loads(outputs["info"].item())
        version, theirs, *_ = (info[key] for key in ("bundle_version", "schema_hash", *keys))
    except (ValueError, TypeError, KeyError) as error:
        raise ServerFault(f"odd info from model {model!r}: {error!r}; is it a Frontrow server?") from error
    if schema is not None and theirs != schema.hash:
        raise SchemaMismatch(
            f"bundle {version} has schema {theirs}, this client has {schema.hash}; pass "
            "schema=Schema.load(...) of the bundle, or upgrade frontrow to the server's release"
        )
    return info


def _read_homepage(member_id: int | None, outputs: Tensors, info: dict[str, Any], catalogue: Catalogue) -> Homepage:
    """The page of the outputs of `homepage`; a row ends at its first title id below 0."""
    pinned = info.get("pinned", ())
    about = {int(row_id): title_id for row_id, title_id in info.get("row_titles", {}).items()}
    columns = ("row_ids", "row_scores", "title_ids", "title_scores", "sources")
    rows = tuple(
        Row(
            row_id,
            catalogue.label(row_id, about.get(row_id)),
            row_score,
            tuple(
                Title(title_id, catalogue.name(title_id), score, _source(source))
                for title_id, score, source in zip(ids, scores, sources, strict=True)
                if title_id >= 0
            ),
            row_id in pinned,
        )
        for row_id, row_score, ids, scores, sources in zip(
            *(outputs[name][0].tolist() for name in columns), strict=True
        )
    )
    return Homepage(member_id, info["bundle_version"], info.get("fallback"), rows, info)


def _source(code: int) -> str:
    # A client without a schema may meet a server that knows more sources than it does.
    return SOURCES[code] if code < len(SOURCES) else f"source {code}"


def _timeout(seconds: float) -> float:
    number = isinstance(seconds, int | float | np.number) and not isinstance(seconds, bool)
    if not number or not (seconds > 0 and math.isfinite(seconds)):
        raise InvalidRequest(f"timeout_s is {seconds!r}, not a positive number of seconds")
    return float(seconds)


_Bundle = tuple[int, str]  # version, fingerprint of the content


def _bundle(info: Mapping[str, Any]) -> _Bundle:
    return int(info["bundle_version"]), str(info.get("bundle_fingerprint", ""))


class _Core:
    """What both clients share: settings, the catalogues kept, and the order of the calls that read one."""

    def __init__(self, timeout_s: float, schema: Schema | None) -> None:
        self._timeout_s = _timeout(timeout_s)
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
            info = _read_info("catalogue", outputs, self._schema, "titles", "rows")
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
    schema: the fields that the server's bundle must have; None checks nothing. transport: in place of gRPC.
    Raises InvalidRequest for a timeout that is not positive or a url with a scheme.
    """

    def __init__(
        self,
        url: str = "localhost:8001",
        *,
        timeout_s: float = 1.0,
        schema: Schema | None = _DEFAULT_SCHEMA,
        transport: Transport | None = None,
    ) -> None:
        super().__init__(timeout_s, schema)
        self._transport = GrpcTransport(url) if transport is None else transport
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
        inputs = _homepage_inputs(member_id, events, context, rows, titles, exclude)
        limit = self._timeout_s if timeout_s is None else _timeout(timeout_s)
        outputs = self._transport.infer("homepage", inputs, timeout_s=limit)
        info = _read_info("homepage", outputs, self._schema)
        bundle = _bundle(info)
        catalogue = self._catalogues.get(bundle) or self._read(bundle)
        return _read_homepage(member_id, outputs, info, catalogue)

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
        transport: AsyncTransport | None = None,
    ) -> None:
        super().__init__(timeout_s, schema)
        self._transport = AsyncGrpcTransport(url) if transport is None else transport
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
        inputs = _homepage_inputs(member_id, events, context, rows, titles, exclude)
        limit = self._timeout_s if timeout_s is None else _timeout(timeout_s)
        outputs = await self._transport.infer("homepage", inputs, timeout_s=limit)
        info = _read_info("homepage", outputs, self._schema)
        bundle = _bundle(info)
        catalogue = self._catalogues.get(bundle) or await self._read(bundle)
        return _read_homepage(member_id, outputs, info, catalogue)

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
