"""`homepage` as it is shipped, but that it keeps no ranking of a member: every request takes every stage."""

from pathlib import Path

import triton_python_backend_utils as pb_utils
from frontrow.benchmarks.staged_page import ForgetfulEngine
from frontrow.serving.store import Store
from frontrow.serving.triton_model import bundle_dir, execute, page_row, with_requests


class TritonPythonModel:
    def initialize(self, args):
        self.engine = ForgetfulEngine(Store.open(Path(bundle_dir(args))))

    def execute(self, requests):
        return execute(pb_utils, "homepage", requests, lambda rows: with_requests(rows, self.pages))

    def pages(self, requests):
        return [p if isinstance(p, ValueError) else page_row(p) for p in self.engine.pages(requests)]
