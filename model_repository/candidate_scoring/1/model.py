"""Stage: dot product of a member vector with candidate titles, best k."""

import triton_python_backend_utils as pb_utils
from frontrow.serving.triton_model import each, execute, open_engine


class TritonPythonModel:
    def initialize(self, args):
        self.engine = open_engine(args)

    def execute(self, requests):
        return execute(pb_utils, "candidate_scoring", requests, each(self.score))

    def score(self, row):
        title_ids, scores = self.engine.score_titles(row["member_vector"], row["title_ids"], int(row["k"][0]))
        return {"title_ids": title_ids, "scores": scores}
