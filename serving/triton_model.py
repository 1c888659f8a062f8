"""What the Triton Server models share: rows of requests in, rows of answers out, one error per bad request.

A model in model_repository/ names its inputs and gives a function from rows to answers; everything about batches,
padding and errors is here, and knows nothing of `triton_python_backend_utils` but the module it is handed.
"""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..foundation.schema import ANONYMOUS, WIRE, Tensor
from .homepage import HomepageEngine, Page
from .known import check_known
from .precision import use_bfloat16
from .requests import BadRequest, PageRequest, RequestError
from .store import Store
from .surfaces import HOMEPAGE

_NUMPY = {"INT64": np.int64, "INT32": np.int32, "FP32": np.float32, "UINT8": np.uint8, "BYTES": np.object_}

# One member's inputs or outputs by name, without the batch dimension.
Row = Mapping[str, np.ndarray]
Compute = Callable[[Sequence[Row]], Sequence["Row | ValueError"]]


def open_engine(args: Mapping[str, str]) -> HomepageEngine:
    """The engine of the bundle that the launcher wrote into the model's config, warm and checked against the bundle's
    known answers. Raises BundleError, which keeps the server from becoming ready and names the file."""
    engine = HomepageEngine(Store.open(bundle_dir(args), device_of(args)))
    check_known(engine)
    if "bfloat16" in json.loads(args["model_config"])["parameters"] and not use_bfloat16(engine):
        logging.getLogger(__name__).warning("bfloat16 is slow here or would change the ranking: float32 is used")
    engine.counters.clear()  # the proof is nobody's page
    engine.stage_seconds.clear()
    return engine


def device_of(args: Mapping[str, str]) -> torch.device:
    """The GPU that Triton Server gives this instance; the CPU where it gives none, or torch has no CUDA."""
    if args["model_instance_kind"] != "GPU" or not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(args["model_instance_device_id"]))


def parameters(args: Mapping[str, str]) -> dict[str, Any]:
    """The parameters of a model's config."""
    return json.loads(args["model_config"])["parameters"]


def bundle_dir(args: Mapping[str, str]) -> Path:
    """The parameter `bundle_dir` of a model's config."""
    return Path(parameters(args)["bundle_dir"]["string_value"])


def execute(pb_utils: Any, model: str, requests: Sequence[Any], compute: Compute) -> list[Any]:
    """One response per request, in order. Every row of every request is computed in one call."""
    read: list[Sequence[Row] | RequestError] = []
    for request in requests:
        try:
            read.append(rows_of(pb_utils, model, request))
        except RequestError as error:
            read.append(error)
    good = iter(answered(pb_utils, model, [r for r in read if not isinstance(r, RequestError)], compute))
    return [error_response(pb_utils, r) if isinstance(r, RequestError) else next(good) for r in read]


def answered(
    pb_utils: Any, model: str, requests: Sequence[Sequence[Row]], compute: Compute, counters: Counter[str] | None = None
) -> list[Any]:
    """One response for the rows of each request, in order. Every row is computed in one call.

    `counters["failed"]` rises with each request that fails and its caller is not to blame: Triton Server, which sends
    the error, counts a success.
    """
    answers = iter(_compute(compute, [row for rows in requests for row in rows]))
    responses = []
    for rows in requests:
        mine = [next(answers) for _ in rows]
        wrong = [(row, a) for row, a in enumerate(mine) if isinstance(a, Exception)]
        if wrong:
            row, error = wrong[0]
            if counters is not None and not isinstance(error, BadRequest):
                counters["failed"] += 1
            responses.append(error_response(pb_utils, error, f"row {row} of the batch: " if len(mine) > 1 else ""))
        else:
            tensors = [pb_utils.Tensor(t.name, _stack(t, [a[t.name] for a in mine])) for t in WIRE[model][1]]  # type: ignore[index]
            responses.append(pb_utils.InferenceResponse(output_tensors=tensors))
    return responses


def rows_of(pb_utils: Any, model: str, request: Any) -> list[Row]:
    """The rows of a request, which remain when Triton Server takes the request's memory back. Raises RequestError."""
    inputs = WIRE[model][0]
    arrays: dict[str, np.ndarray] = {}
    for t in inputs:
        tensor = pb_utils.get_input_tensor_by_name(request, t.name)
        if tensor is not None:
            arrays[t.name] = np.array(tensor.as_numpy())
        elif not t.optional:
            raise RequestError(f"input {t.name!r} is missing")
    counts = {name: a.shape[0] for name, a in arrays.items()}
    if len(set(counts.values())) != 1:
        raise RequestError(f"inputs have different batch sizes: {counts}")
    size = next(iter(counts.values()))
    empty = {t.name: np.empty(0, _NUMPY[t.dtype]) for t in inputs}
    return [empty | {name: a[i].reshape(-1) for name, a in arrays.items()} for i in range(size)]


def _compute(compute: Compute, rows: Sequence[Row]) -> Sequence[Row | Exception]:
    """All rows at once; if that breaks, one by one, so that a row nobody foresaw breaks only itself."""
    if not rows:
        return []
    try:
        return compute(rows)
    except Exception as error:
        logging.getLogger(__name__).exception("a batch of %d rows failed", len(rows))
        return [error] if len(rows) == 1 else [_compute(compute, [row])[0] for row in rows]


def error_response(pb_utils: Any, error: Exception, where: str = "") -> Any:
    """The response that tells a caller of an error."""
    bad = isinstance(error, BadRequest)  # any other ValueError is a fault of ours, not of the caller
    code = pb_utils.TritonError.INVALID_ARG if bad else pb_utils.TritonError.INTERNAL
    text = str(error) if bad else f"{type(error).__name__}: {error}"
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(where + text, code))


def _stack(t: Tensor, rows: Sequence[np.ndarray]) -> np.ndarray:
    """Rows of one output in front of each other, padded to the longest: ids with −1, anything else with 0."""
    dtype = _NUMPY[t.dtype]
    shape = tuple(max(r.shape[i] for r in rows) for i in range(len(t.dims)))
    if len(rows) == 1:
        return np.ascontiguousarray(rows[0], dtype)[None]
    stacked = np.full((len(rows), *shape), -1 if t.dtype == "INT64" else 0, dtype)
    for i, row in enumerate(rows):
        stacked[(i, *(slice(n) for n in row.shape))] = row
    return stacked


def page_request(row: Row) -> PageRequest:
    """The inputs of `homepage` (or the personal inputs of a stage) as a PageRequest. Raises RequestError."""

    def text(name: str) -> bytes:
        values = row.get(name, np.empty(0, np.object_))
        if len(values) > 1:
            raise RequestError(f"{name} has {len(values)} values; give one or none")
        return bytes(values[0]) if len(values) else b""

    page = row.get("page", np.empty(0, np.int32))
    if len(page) not in (0, 2):
        raise RequestError(f"page has {len(page)} values; give two, rows and titles per row")
    size = {"rows": int(page[0]), "titles": int(page[1])} if len(page) else {}
    return PageRequest(
        member_id=int(row["member_id"][0]) if len(row["member_id"]) else ANONYMOUS,
        events=[bytes(e) for e in row["events"] if len(e)],  # a client batch pads shorter histories with ""
        context=text("context"),
        exclude=row.get("exclude", np.empty(0, np.int64)),
        surface=text("surface").decode(errors="replace") or HOMEPAGE,
        experiment=text("experiment").decode(errors="replace"),
        **size,
    )


def page_row(page: Page) -> Row:
    """The outputs of `homepage`."""
    return {
        "row_ids": page.row_ids,
        "row_scores": page.row_scores,
        "title_ids": page.title_ids,
        "title_scores": page.title_scores,
        "sources": page.sources,
        "info": np.array([json.dumps(page.info).encode()], np.object_),
    }


def each(compute_one: Callable[[Row], Row]) -> Compute:
    """A Compute that takes rows one by one; what is wrong in a request is that row's answer."""

    def compute(rows: Sequence[Row]) -> list[Row | ValueError]:
        answers: list[Row | ValueError] = []
        for row in rows:
            try:
                answers.append(compute_one(row))
            except BadRequest as error:
                answers.append(error)
        return answers

    return compute


def with_requests(
    rows: Sequence[Row], answer: Callable[[list[PageRequest]], Sequence[Row | ValueError]]
) -> list[Row | ValueError]:
    """`answer` for all rows that are a valid PageRequest, the error for the others, in order."""
    found: list[PageRequest | ValueError] = []
    for row in rows:
        try:
            found.append(page_request(row))
        except RequestError as error:
            found.append(error)
    answers = iter(answer([r for r in found if isinstance(r, PageRequest)]))
    return [next(answers) if isinstance(r, PageRequest) else r for r in found]
