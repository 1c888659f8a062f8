"""Between Python values and the tensors of the wire contract: pure functions, each mistake named.

Shapes are those of `WIRE["homepage"]` and `WIRE["catalogue"]`, with a batch dimension of 1.
"""

from __future__ import annotations

import json
import math
import reprlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from ..foundation.schema import ANONYMOUS, MAX_EVENT_BYTES, MAX_EVENTS, MAX_ROWS, MAX_TEXT, MAX_TITLES, SOURCES, Schema
from .errors import InvalidRequest, SchemaMismatch, ServerFault
from .results import Catalogue, Homepage, Results, Row, Title

Tensors = dict[str, np.ndarray]


def homepage_inputs(
    member_id: int | None,
    events: Sequence[Mapping[str, Any]],
    context: Mapping[str, Any] | None,
    rows: int,
    titles: int,
    exclude: Iterable[int],
    surface: str = "",
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
        "surface": _texts([surface.encode()] if surface else []),
        "experiment": _texts([]),
    }


def search_inputs(query: str, member_id: int | None, context: Mapping[str, Any] | None, **more: Any) -> Tensors:
    """Those of the surface `search`. more: the other arguments of `homepage_inputs`."""
    if not isinstance(query, str):
        raise InvalidRequest(f"query is {reprlib.repr(query)}, not a text")
    if len(query) > MAX_TEXT:
        raise InvalidRequest(f"query has {len(query):,} characters, more than {MAX_TEXT}")
    return homepage_inputs(member_id, context=_asking("query", query, context), rows=1, surface="search", **more)


def similar_inputs(title_id: int, member_id: int | None, context: Mapping[str, Any] | None, **more: Any) -> Tensors:
    """Those of the surface `more_like_this`. more: the other arguments of `homepage_inputs`."""
    asking = _asking("title_id", _integer("title_id", title_id, 0), context)
    return homepage_inputs(member_id, context=asking, rows=1, surface="more_like_this", **more)


def _asking(key: str, value: Any, context: Mapping[str, Any] | None) -> Any:
    """The context with a surface's question in it."""
    if context is not None and not isinstance(context, Mapping):
        return context  # which `_json` will name
    if context is not None and key in context:
        raise InvalidRequest(f"context has {key!r} too: {context[key]!r}; give it as the argument alone")
    return {**(context or {}), key: value}


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


def read_info(model: str, outputs: Tensors, schema: Schema | None, *keys: str) -> dict[str, Any]:
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


def read_homepage(member_id: int | None, outputs: Tensors, info: dict[str, Any], catalogue: Catalogue) -> Homepage:
    """The page of the outputs of `homepage`; a row ends at its first title id below 0."""
    pinned, level = info.get("pinned", ()), info.get("title_log_normaliser")
    about = {int(row_id): title_id for row_id, title_id in info.get("row_titles", {}).items()}
    columns = ("row_ids", "row_scores", "title_ids", "title_scores", "sources")
    rows = tuple(
        Row(
            row_id,
            catalogue.label(row_id, about.get(row_id)),
            row_score,
            _titles(ids, scores, sources, catalogue, level),
            row_id in pinned,
        )
        for row_id, row_score, ids, scores, sources in zip(
            *(outputs[name][0].tolist() for name in columns), strict=True
        )
    )
    return Homepage(member_id, info["bundle_version"], info.get("fallback"), rows, info)


def read_results(member_id: int | None, outputs: Tensors, info: dict[str, Any], catalogue: Catalogue) -> Results:
    """The one row of the outputs of `homepage` on another surface. Raises ServerFault if it is not one row."""
    page = read_homepage(member_id, outputs, info, catalogue)
    if len(page.rows) != 1 or not info.get("surface"):
        raise ServerFault(f"a surface of one row was asked for, {len(page.rows)} rows came; is the server older?")
    row = page.rows[0]
    return Results(member_id, page.bundle_version, info["surface"], row.label, page.fallback, row.titles, info)


def _titles(
    ids: list[int], scores: list[float], sources: list[int], catalogue: Catalogue, level: float | None
) -> tuple[Title, ...]:
    """level: the log normaliser of the scores, if they have one."""
    return tuple(
        Title(title_id, catalogue.name(title_id), score, source_name(source), _probability(score, source, level))
        for title_id, score, source in zip(ids, scores, sources, strict=True)
        if title_id >= 0
    )


def _probability(score: float, source: int, level: float | None) -> float | None:
    return None if level is None or source_name(source) == "history" else math.exp(min(0.0, score - level))


def source_name(code: int) -> str:
    # A client without a schema may meet a server that knows more sources than it does.
    return SOURCES[code] if code < len(SOURCES) else f"source {code}"


def timeout_of(seconds: float) -> float:
    number = isinstance(seconds, int | float | np.number) and not isinstance(seconds, bool)
    if not number or not (seconds > 0 and math.isfinite(seconds)):
        raise InvalidRequest(f"timeout_s is {seconds!r}, not a positive number of seconds")
    return float(seconds)
