"""Every stage of a homepage in one process: the model that clients call."""

import triton_python_backend_utils as pb_utils
from frontrow.serving.triton_model import MetricsExport, execute, open_engine, page_row, with_requests


class TritonPythonModel:
    def initialize(self, args):
        self.engine = open_engine(args)
        _ = self.engine.store.search  # made now, so that nobody waits for it
        self.metrics = MetricsExport(pb_utils, self.engine)

    def execute(self, requests):
        responses = execute(pb_utils, "homepage", requests, self.answers, self.engine.counters)
        self.metrics.publish()
        return responses

    def answers(self, rows):
        return with_requests(rows, self.pages)

    def pages(self, requests):
        return [p if isinstance(p, ValueError) else page_row(p) for p in self.engine.pages(requests)]
