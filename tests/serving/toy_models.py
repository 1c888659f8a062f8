"""Trivial Triton Server models: one that echoes, one that cannot start, one that does not end."""

from __future__ import annotations

from pathlib import Path

CONFIG = """
name: "{name}"
backend: "python"
max_batch_size: 4
input [ {{ name: "X" data_type: TYPE_FP32 dims: [ -1 ] }} ]
output [
  {{ name: "Y" data_type: TYPE_FP32 dims: [ -1 ] }},
  {{ name: "ABOUT" data_type: TYPE_STRING dims: [ 3 ] }}
]
"""
ECHO = """
import json
import os

import numpy as np
import triton_python_backend_utils as pb


class TritonPythonModel:
    def initialize(self, args):
        parameters = json.loads(args["model_config"])["parameters"]
        bundle = parameters["bundle_dir"]["string_value"]
        self.about = [args["model_version"], bundle, os.environ.get("OMP_NUM_THREADS", "")]

    def execute(self, requests):
        answers = []
        for request in requests:
            x = pb.get_input_tensor_by_name(request, "X").as_numpy()
            about = np.array([self.about] * len(x), dtype=object)
            answers.append(pb.InferenceResponse([pb.Tensor("Y", x), pb.Tensor("ABOUT", about)]))
        return answers
"""
CORRUPT = """
class TritonPythonModel:
    def initialize(self, args):
        raise ValueError("bundle file titles.safetensors is corrupt")
"""
STUBBORN = """
import time


class TritonPythonModel:
    def finalize(self):
        time.sleep(600)
"""


def write_toy_models(folder: Path) -> Path:
    """The three models as templates of a repository under `folder`, which it gives back."""
    for name, code in {"echo": ECHO, "corrupt": CORRUPT, "stubborn": STUBBORN}.items():
        (folder / name / "1").mkdir(parents=True)
        (folder / name / "config.pbtxt").write_text(CONFIG.format(name=name))
        (folder / name / "1" / "model.py").write_text(code)
    return folder
