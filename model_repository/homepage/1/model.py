"""Every stage of a homepage in one process: the model that clients call."""

import triton_python_backend_utils as pb_utils
from frontrow.serving.loading import politely


class TritonPythonModel:
    def initialize(self, args):
        politely(lambda: self.load(args))  # beside the bundle that is served until this one is ready
        from frontrow.serving.gate import CPU_BATCH, GPU_BATCH, Gate, queue_limit
        from frontrow.serving.metrics import MetricsExport
        from frontrow.serving.triton_model import parameters

        batch = GPU_BATCH if self.engine.store.device.type == "cuda" else CPU_BATCH
        limit, counters = queue_limit(parameters(args)), self.engine.counters
        on_batch, tracing = self.tracing.publish, self.tracing.on
        self.gate = Gate(pb_utils, "homepage", self.answers, counters, batch, limit, on_batch, tracing)
        self.metrics = MetricsExport(pb_utils, self.engine)

    def load(self, args):
        from frontrow.serving.tracing import Tracing
        from frontrow.serving.triton_model import open_engine

        self.engine = open_engine(args)
        _ = self.engine.store.search  # made now, so that nobody waits for it
        self.tracing = Tracing(self.engine)

    def execute(self, requests):
        return self.gate.execute(requests)

    def finalize(self):
        self.metrics.close()

    def answers(self, rows):
        from frontrow.serving.triton_model import with_requests

        return with_requests(rows, self.pages)

    def pages(self, requests):
        from frontrow.serving.triton_model import page_row

        return [p if isinstance(p, ValueError) else page_row(p) for p in self.engine.pages(requests)]
