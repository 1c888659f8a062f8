"""A small `triton_python_backend_utils`, and a transport for the homepage client that runs a model's `execute` on it:
the whole served path without a server."""

from __future__ import annotations

import importlib.util
import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from queue import Queue
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
from frontrow.clients import InvalidRequest, ServerFault
from frontrow.foundation.schema import WIRE

FINAL = 1
MODELS = Path(__file__).parents[2] / "model_repository"


@dataclass
class Tensor:
    _name: str
    array: np.ndarray

    def name(self) -> str:
        return self._name

    def as_numpy(self) -> np.ndarray:
        return self.array


@dataclass
class TritonError:
    message_: str
    code_: str = "INTERNAL"
    INVALID_ARG = "INVALID_ARG"
    INTERNAL = "INTERNAL"
    UNAVAILABLE = "UNAVAILABLE"


@dataclass
class InferenceResponse:
    output_tensors: list[Tensor] = field(default_factory=list)
    error: TritonError | None = None

    def value(self, name: str) -> np.ndarray:
        assert self.error is None, self.error
        return next(t.array for t in self.output_tensors if t.name() == name)


@dataclass
class MetricFamily:
    """Counters and gauges, by the values of their labels."""

    name: str
    description: str
    kind: str
    values: dict[str, float] = field(default_factory=dict)
    COUNTER, GAUGE = "counter", "gauge"

    def Metric(self, labels: dict[str, str]) -> Any:
        key = " ".join(labels.values())
        assert key not in self.values, "a metric is made once"
        self.values[key] = 0.0

        def increment(by: float) -> None:
            assert by >= 0, "Triton Server's counters refuse to fall"
            assert self.kind == self.COUNTER
            self.values[key] += by

        return SimpleNamespace(increment=increment, set=lambda value: self.values.update({key: value}))


class Request(list[Tensor]):
    """Its tensors, its parameters, and the one response that was sent to it."""

    def __init__(self, tensors: list[Tensor], parameters: dict[str, Any], timeout_us: int) -> None:
        super().__init__(tensors)
        self._parameters, self._timeout_us = parameters, timeout_us
        self._response: Queue[InferenceResponse] = Queue(1)

    def parameters(self) -> str:
        return json.dumps(self._parameters) if self._parameters else ""

    def timeout(self) -> int:
        return self._timeout_us

    def get_response_sender(self) -> Any:
        def send(response: InferenceResponse, flags: int) -> None:
            assert flags == FINAL
            self._response.put_nowait(response)

        return SimpleNamespace(send=send)

    def response(self) -> InferenceResponse:
        return self._response.get(timeout=20)

    @property
    def answered(self) -> bool:
        return not self._response.empty()


def request(arrays: dict[str, np.ndarray], timeout_us: int = 0, **parameters: Any) -> Request:
    return Request([Tensor(name, array) for name, array in arrays.items()], parameters, timeout_us)


def execute(model: Any, requests: list[Request]) -> list[InferenceResponse]:
    """What the callers get, returned by the model or sent by it."""
    returned = model.execute(requests)
    assert all(r.answered == (answer is None) for r, answer in zip(requests, returned, strict=True))
    return [r.response() if answer is None else answer for r, answer in zip(requests, returned, strict=True)]


def fake_module() -> ModuleType:
    module = ModuleType("triton_python_backend_utils")
    module.Tensor, module.TritonError, module.InferenceResponse = Tensor, TritonError, InferenceResponse  # type: ignore
    module.MetricFamily = MetricFamily  # type: ignore[attr-defined]
    module.TRITONSERVER_RESPONSE_COMPLETE_FINAL = FINAL  # type: ignore[attr-defined]
    module.get_input_tensor_by_name = lambda tensors, name: next(  # type: ignore[attr-defined]
        (t for t in tensors if t.name() == name), None
    )
    return module


def load_model(name: str, bundle: Path) -> Any:
    """The TritonPythonModel of model_repository/<name>, initialized on a bundle as Triton Server would."""
    before = sys.modules.get("triton_python_backend_utils")
    sys.modules["triton_python_backend_utils"] = fake_module()
    try:
        spec = importlib.util.spec_from_file_location(f"served_{name}", MODELS / name / "1" / "model.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    finally:
        if before is None:
            del sys.modules["triton_python_backend_utils"]
        else:
            sys.modules["triton_python_backend_utils"] = before
    model = module.TritonPythonModel()
    config = {"parameters": {"bundle_dir": {"string_value": str(bundle)}}}
    model.initialize({"model_config": json.dumps(config), "model_version": bundle.name, "model_instance_kind": "CPU"})
    return model


class InProcessTransport:
    """The client's seam: tensors in, `execute`, tensors out."""

    def __init__(self, bundle: Path) -> None:
        self.models = {name: load_model(name, bundle) for name in ("homepage", "catalogue")}

    def infer(
        self, model: str, inputs: dict[str, np.ndarray], *, timeout_s: float, version: str = ""
    ) -> dict[str, np.ndarray]:
        (response,) = execute(self.models[model], [request(inputs)])
        if response.error is not None:
            kind = InvalidRequest if response.error.code_ == TritonError.INVALID_ARG else ServerFault
            raise kind(response.error.message_)
        found = {t.name(): t.as_numpy() for t in response.output_tensors}
        assert list(found) == [t.name for t in WIRE[model][1]]
        return found

    def close(self) -> None:
        pass
