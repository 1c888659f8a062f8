"""Stage: history → member vector and the state that the row ranker reads."""

import time

import triton_python_backend_utils as pb_utils
from frontrow.serving.triton_model import execute, open_engine, with_requests


class TritonPythonModel:
    def initialize(self, args):
        self.engine = open_engine(args)

    def execute(self, requests):
        return execute(pb_utils, "foundation_model", requests, lambda rows: with_requests(rows, self.encode))

    def encode(self, requests):
        prepared = self.engine.prepare(requests, time.time())
        good = [p for p in prepared if not isinstance(p, ValueError)]
        if not good:
            return prepared
        vectors, states = self.engine.encode(good)
        rows = iter(zip(vectors.cpu().numpy(), states.cpu().numpy(), strict=True))
        named = ({"member_vector": v, "row_state": s} for v, s in rows)
        return [p if isinstance(p, ValueError) else next(named) for p in prepared]
