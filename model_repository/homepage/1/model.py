"""Every stage of a homepage in one process: the model that clients call."""

import triton_python_backend_utils as pb_utils
from frontrow.serving.triton_model import CounterExport, execute, open_engine, page_row, with_requests


class TritonPythonModel:
    def initialize(self, args):
        self.engine = open_engine(args)
        _ = self.engine.store.search  # made now, so that nobody waits for it
        self.counters = CounterExport(pb_utils)

    def execute(self, requests):
        responses = execute(pb_utils, "homepage", requests, lambda rows: with_requests(rows, self.pages))
        self.counters.publish(self.engine.counters)
        return responses

    def pages(self, requests):
        return [p if isinstance(p, ValueError) else page_row(p) for p in self.engine.pages(requests)]
