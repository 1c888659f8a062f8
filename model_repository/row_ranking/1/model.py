"""Stage: frozen state of layer k → probability of each row asked for."""

import triton_python_backend_utils as pb_utils
from frontrow.serving.triton_model import each, execute, open_engine


class TritonPythonModel:
    def initialize(self, args):
        self.engine = open_engine(args)

    def execute(self, requests):
        return execute(pb_utils, "row_ranking", requests, each(self.rank))

    def rank(self, row):
        return {"scores": self.engine.row_probabilities(row["row_state"], row["row_ids"])}
