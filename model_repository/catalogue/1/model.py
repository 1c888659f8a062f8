"""Names of titles and rows of a bundle version, which a client fetches once and keeps."""

import json

import numpy as np
import triton_python_backend_utils as pb_utils
from frontrow.serving.loading import politely

TITLES_A_CALL = 50_000


class TritonPythonModel:
    def initialize(self, args):
        politely(lambda: self.load(args))  # beside the bundle that is served until this one is ready

    def load(self, args):
        from frontrow.foundation.bundle import load_bundle
        from frontrow.serving.surfaces import SURFACES
        from frontrow.serving.triton_model import bundle_dir

        bundle = load_bundle(bundle_dir(args))
        self.ids, self.names = bundle.titles.ids, [name.encode() for name in bundle.titles.names]
        info = {
            "bundle_version": bundle.version,
            "bundle_fingerprint": bundle.fingerprint,
            "schema_hash": bundle.schema.hash,
            "titles": len(self.ids),
            "rows": [
                *({"row_id": row["row_id"], "label": row["label"]} for row in bundle.rows["rows"]),
                *({"row_id": surface.row_id, "label": surface.label} for surface in SURFACES.values()),
            ],
        }
        self.info = np.array([json.dumps(info).encode()], np.object_)

    def execute(self, requests):
        from frontrow.serving.triton_model import each, execute

        return execute(pb_utils, "catalogue", requests, each(self.names_from))

    def names_from(self, row):
        from frontrow.serving.requests import RequestError

        start = int(row["title_offset"][0])
        if not 0 <= start <= len(self.ids):
            raise RequestError(f"title_offset is {start}; the catalogue has {len(self.ids)} titles")
        part = slice(start, start + TITLES_A_CALL)
        names = np.array(self.names[part], np.object_)
        return {"title_ids": self.ids[part], "title_names": names, "info": self.info}
