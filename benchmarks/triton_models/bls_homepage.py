"""The homepage by business logic scripting: a Python model that calls the stages. Requests of a batch are on the way at
the same time, so that the stages have something to batch."""

import asyncio
import json
from pathlib import Path

import numpy as np
import triton_python_backend_utils as pb_utils
from frontrow.benchmarks.staged_page import ASSEMBLY
from frontrow.serving.homepage import CANDIDATES
from frontrow.serving.triton_model import bundle_dir

OUTPUTS = [t.name for t in ASSEMBLY[1]]


class TritonPythonModel:
    def initialize(self, args):
        rows = json.loads((Path(bundle_dir(args)) / "rows.json").read_bytes())["rows"]
        self.row_ids = np.array([[row["row_id"] for row in rows]], np.int64)

    async def execute(self, requests):
        return await asyncio.gather(*(self.answer(request) for request in requests))

    async def answer(self, request):
        given = {t.name(): t for t in request.inputs()}
        personal = [given[name] for name in ("member_id", "events", "context")]
        vector, state = await call("foundation_model", personal, ["member_vector", "row_state"])
        rows = pb_utils.Tensor("row_ids", self.row_ids)
        k = pb_utils.Tensor("k", np.array([[CANDIDATES]], np.int32))
        (row_scores,), (titles, sources) = await asyncio.gather(
            call("row_ranking", [state, rows], ["scores"]),
            call("candidate_retrieval", [vector, given["member_id"], k, given["exclude"]], ["title_ids", "sources"]),
        )
        best, scores = await call("candidate_scoring", [vector, titles, k], ["title_ids", "scores"])
        found = [vector, titles, sources, named("best_ids", best), named("best_scores", scores)]
        outputs = await call("page_assembly", [*given.values(), *found, named("row_chances", row_scores)], OUTPUTS)
        return pb_utils.InferenceResponse(output_tensors=outputs)


def named(name, tensor):
    """A stage's output under the name that the next stage has for it."""
    return pb_utils.Tensor(name, tensor.as_numpy())


async def call(model, inputs, outputs):
    request = pb_utils.InferenceRequest(model_name=model, inputs=inputs, requested_output_names=outputs)
    response = await request.async_exec()
    if response.has_error():
        raise pb_utils.TritonModelException(f"{model}: {response.error().message()}")
    return [pb_utils.get_output_tensor_by_name(response, name) for name in outputs]
