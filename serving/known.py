"""A bundle's known requests and their answers: proof that whatever process serves it computes what its maker did.

Shape letters: R rows, C titles per row.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..foundation.bundle import BundleError
from .homepage import HomepageEngine
from .requests import PageRequest

KNOWN_TOLERANCE = 5e-3  # between processors and precisions; a wrong or empty answer is far off
LOOSE = 2e-2


def known_answers(engine: HomepageEngine, member_ids: Sequence[int], timestamp: int) -> dict[str, Any]:
    """Requests at a fixed time with this engine's answers, for `check_known` in whatever process serves the bundle."""
    context = {"timestamp": timestamp}
    # A varied row may turn round on the last bit of a score; its first title does not.
    titles = 1 if engine.store.rows.diversity else 8
    answers = []
    for member_id in member_ids:
        request = PageRequest(member_id, context=json.dumps(context).encode(), titles=titles)
        page = engine.pages([request], now=float(timestamp))[0]
        if isinstance(page, ValueError):
            raise page
        answers.append(
            {
                "member_id": member_id,
                "row_scores": np.round(page.row_scores.astype(float), 6).tolist(),
                "title_scores": np.round(page.title_scores.astype(float), 6).tolist(),
            }
        )
    return {"context": context, "rows": 10, "titles": titles, "answers": answers}


def compare_known(
    known: Mapping[str, Any], pages: Sequence[tuple[np.ndarray, np.ndarray]], exactly: bool = True
) -> str | None:
    """What differs between known answers and pages given as (row_scores [R], title_scores [R, C]), or None. Not
    exactly: only the best score of each kind, within LOOSE, for near ties may stand the other way round."""
    for answer, (row_scores, title_scores) in zip(known["answers"], pages, strict=True):
        rows = len(answer["row_scores"])  # of an empty page JSON keeps no shape
        for name, found, shape in (("row_scores", row_scores, (rows,)),
                                   ("title_scores", title_scores, (rows, known["titles"]))):  # fmt: skip
            wanted = np.array(answer[name], np.float32).reshape(shape)
            if found.shape != wanted.shape:
                return f"member {answer['member_id']}: {name} has shape {found.shape}, known is {wanted.shape}"
            if not exactly:
                found, wanted = (np.array(x.max(initial=-np.inf) if x.size else 0.0) for x in (found, wanted))
            worst = float(np.abs(found - wanted).max()) if wanted.size else 0.0
            if not worst <= (KNOWN_TOLERANCE if exactly else LOOSE) * max(1.0, float(np.abs(wanted).max(initial=0.0))):
                return f"member {answer['member_id']}: {name} is off by {worst:.3g}"
    return None


def check_known(engine: HomepageEngine) -> None:
    """Answer the bundle's known requests, which also warms every stage. Raises BundleError if an answer differs."""
    known = engine.store.bundle.known
    context = json.dumps(known["context"]).encode()
    now = float(known["context"]["timestamp"])
    requests = [PageRequest(a["member_id"], context=context, rows=known["rows"], titles=known["titles"])
                for a in known["answers"]]  # fmt: skip
    pages = []
    for page in engine.pages(requests, now):
        if isinstance(page, ValueError):
            raise BundleError(f"{engine.store.bundle.path / 'known.json'}: {page}")
        pages.append((page.row_scores, page.title_scores))
    if difference := compare_known(known, pages):
        raise BundleError(f"{engine.store.bundle.path}: a known request is answered differently: {difference}")
