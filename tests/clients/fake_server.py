"""A server in memory behind the transport seam, which checks every input against WIRE."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from frontrow.clients import ModelNotFound
from frontrow.foundation.schema import WIRE, default_schema

NUMPY = {"INT64": np.int64, "INT32": np.int32, "FP32": np.float32, "UINT8": np.uint8, "BYTES": np.object_}


@dataclass
class FakeServer:
    """A transport that holds bundles: for each version the names of its titles. The newest answers pages."""

    bundles: dict[int, dict[int, str]] = field(default_factory=lambda: {1: {7: "Amélie", 8: "Heat", 9: "Up"}})
    schema_hash: str = default_schema().hash
    fingerprint: str = "a"
    chunk: int = 2
    fallback: str | None = None
    page_version: int | None = None
    level: float | None = 4.0
    delay_s: float = 0.0
    calls: list[tuple[str, str, dict[str, np.ndarray], float]] = field(default_factory=list)
    closed: bool = False
    during_catalogue: Callable[[], None] = lambda: None

    def infer(
        self, model: str, inputs: dict[str, np.ndarray], *, timeout_s: float, version: str = ""
    ) -> dict[str, np.ndarray]:
        assert list(inputs) == [t.name for t in WIRE[model][0]], "every input, in the order of WIRE"
        for tensor in WIRE[model][0]:
            array = inputs[tensor.name]
            assert array.dtype == NUMPY[tensor.dtype], tensor.name
            assert array.ndim == 1 + len(tensor.dims), tensor.name
            assert array.shape[0] == 1, tensor.name
            assert all(d in (-1, n) for d, n in zip(tensor.dims, array.shape[1:], strict=True)), tensor.name
            if tensor.dtype == "BYTES":
                assert all(isinstance(text, bytes) for text in array.flat), tensor.name
        self.calls.append((model, version, inputs, timeout_s))
        surface = b"".join(inputs["surface"][0].tolist()).decode() if model == "homepage" else ""
        answer = self._row(surface) if surface else self._homepage() if model == "homepage" else None
        answer = self._catalogue(inputs, version) if answer is None else answer
        for tensor in WIRE[model][1]:
            assert answer[tensor.name].dtype == NUMPY[tensor.dtype], f"the fake itself: {tensor.name}"
        return answer

    def close(self) -> None:
        self.closed = True

    def _info(self, version: int, **more: Any) -> np.ndarray:
        about = {"bundle_version": version, "bundle_fingerprint": self.fingerprint}
        info = {**about, "schema_hash": self.schema_hash, **more}
        return np.array([[json.dumps(info).encode()]], np.object_)

    def _homepage(self) -> dict[str, np.ndarray]:
        counts = {"unknown_values": 0, "out_of_order": 0, "truncated": 0}
        more = {"row_titles": {"3": 8}, "pinned": [1], "counts": counts, "stages_ms": {"rank": 1.5},
                "title_log_normaliser": self.level}  # fmt: skip
        version = self.page_version or max(self.bundles)
        return {
            "row_ids": np.array([[3, 1]], np.int64),
            "row_scores": np.array([[0.5, 0.25]], np.float32),
            "title_ids": np.array([[[7, 9], [8, -1]]], np.int64),
            "title_scores": np.array([[[2.0, 1.5], [1.0, 0.0]]], np.float32),
            "sources": np.array([[[1, 4], [7, 0]]], np.uint8),
            "info": self._info(version, fallback=self.fallback, **more),
        }

    def _row(self, surface: str) -> dict[str, np.ndarray]:
        version = self.page_version or max(self.bundles)
        return {
            "row_ids": np.array([[-2]], np.int64),
            "row_scores": np.zeros((1, 1), np.float32),
            "title_ids": np.array([[[8, 7, -1]]], np.int64),
            "title_scores": np.array([[[2.0, 1.5, 0.0]]], np.float32),
            "sources": np.array([[[9, 9, 0]]], np.uint8),
            "info": self._info(version, fallback=self.fallback, surface=surface, row_titles={"-2": 9}),
        }

    def _catalogue(self, inputs: dict[str, np.ndarray], version: str) -> dict[str, np.ndarray]:
        time.sleep(self.delay_s)
        number = int(version) if version else max(self.bundles)
        if number not in self.bundles:
            raise ModelNotFound(f"no version {number}")
        titles = self.bundles[number]
        offset = int(inputs["title_offset"][0, 0])
        part = list(titles.items())[offset : offset + self.chunk]
        rows = [{"row_id": 1, "label": "Popular"}, {"row_id": 3, "label": "Because you watched {title}"},
                {"row_id": -2, "label": "More like {title}"}]  # fmt: skip
        answer = {
            "title_ids": np.array([[i for i, _ in part]], np.int64),
            "title_names": np.array([[name.encode() for _, name in part]], np.object_),
            "info": self._info(number, titles=len(titles), rows=rows),
        }
        self.during_catalogue()
        return answer

    def asked(self, model: str) -> list[tuple[str, int]]:
        """(version, title_offset) of each call of a model; offset −1 where it takes none."""
        return [(v, int(i.get("title_offset", np.array(-1)).item())) for m, v, i, _ in self.calls if m == model]


class AsyncFakeServer:
    """The same server behind the asyncio seam; yields to the loop so that calls interleave."""

    def __init__(self, server: FakeServer) -> None:
        self.server = server

    async def infer(
        self, model: str, inputs: dict[str, np.ndarray], *, timeout_s: float, version: str = ""
    ) -> dict[str, np.ndarray]:
        await asyncio.sleep(0.001)
        return self.server.infer(model, inputs, timeout_s=timeout_s, version=version)

    async def close(self) -> None:
        self.server.close()
