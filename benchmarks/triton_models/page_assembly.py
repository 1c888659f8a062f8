"""The stage that model_repository/ does not have: what the other stages found → the page."""

import time
from pathlib import Path

import triton_python_backend_utils as pb_utils
from frontrow.benchmarks.staged_page import ASSEMBLY, StagedEngine
from frontrow.serving.triton_model import bundle_dir, page_row


class TritonPythonModel:
    def initialize(self, args):
        self.engine = StagedEngine(Path(bundle_dir(args)))

    def execute(self, requests):
        return [self.answer(request) for request in requests]

    def answer(self, request):
        tensors = {t.name(): t.as_numpy()[0] for t in request.inputs()}
        page = page_row(self.engine.page_of(tensors, time.time()))
        outputs = [pb_utils.Tensor(t.name, page[t.name][None]) for t in ASSEMBLY[1]]
        return pb_utils.InferenceResponse(output_tensors=outputs)
