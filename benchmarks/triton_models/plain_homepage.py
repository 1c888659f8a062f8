"""Peer (a) of serve_peers.py as a Triton Server model: one page for each request, one after the other."""

from pathlib import Path

import triton_python_backend_utils as pb_utils
from frontrow.benchmarks.plain_engine import PlainEngine
from frontrow.serving.triton_model import bundle_dir, each, execute, page_request, page_row


class TritonPythonModel:
    def initialize(self, args):
        self.engine = PlainEngine(Path(bundle_dir(args)))

    def execute(self, requests):
        return [execute(pb_utils, "homepage", [request], each(self.answer))[0] for request in requests]

    def answer(self, row):
        return page_row(self.engine.page(page_request(row)))
