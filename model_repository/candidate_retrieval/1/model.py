"""Stage: member vector → candidates from all sources."""

import triton_python_backend_utils as pb_utils
from frontrow.serving.triton_model import each, execute, open_engine


class TritonPythonModel:
    def initialize(self, args):
        self.engine = open_engine(args)

    def execute(self, requests):
        return execute(pb_utils, "candidate_retrieval", requests, each(self.retrieve))

    def retrieve(self, row):
        title_ids, sources = self.engine.candidates(
            row["member_vector"], int(row["member_id"][0]), int(row["k"][0]), row["exclude"]
        )
        return {"title_ids": title_ids, "sources": sources}
