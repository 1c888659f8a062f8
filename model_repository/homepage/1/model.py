"""Every stage of a homepage in one process: the model that clients call."""

import triton_python_backend_utils as pb_utils
from frontrow.serving.gate import CPU_BATCH, GPU_BATCH, Gate, queue_limit
from frontrow.serving.metrics import MetricsExport
from frontrow.serving.triton_model import open_engine, page_row, parameters, with_requests


class TritonPythonModel:
    def initialize(self, args):
        self.engine = engine = open_engine(args)
        _ = engine.store.search  # made now, so that nobody waits for it
        self.metrics = MetricsExport(pb_utils, engine)
        batch = GPU_BATCH if engine.store.device.type == "cuda" else CPU_BATCH
        limit = queue_limit(parameters(args), batch)
        self.gate = Gate(pb_utils, "homepage", self.answers, engine.counters, batch, limit, self.metrics.publish)

    def execute(self, requests):
        self.gate.admit(requests)  # they are answered when it is their turn

    def finalize(self):
        self.gate.close()

    def answers(self, rows):
        return with_requests(rows, self.pages)

    def pages(self, requests):
        return [p if isinstance(p, ValueError) else page_row(p) for p in self.engine.pages(requests)]
