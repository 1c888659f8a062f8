"""What the command line shows, without a server: notes of a page, the progress line, any bundle's page."""

from __future__ import annotations

import io
import json
import re
from typing import Any

import pytest
from fake_server import FakeServer
from frontrow.clients import client, show
from frontrow.clients.cli import app
from frontrow.clients.client import Homepage
from frontrow.training.train import Progress
from rich.console import Console
from typer.testing import CliRunner


def test_homepage_shows_a_bundle_of_any_schema(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "GrpcTransport", lambda url, background: FakeServer(schema_hash="of other fields"))
    done = CliRunner().invoke(app, ["homepage", "--member", "1", "--json"], catch_exceptions=False)
    assert json.loads(done.stdout)["rows"][0]["titles"][0]["name"] == "Amélie"


@pytest.mark.parametrize(
    ("info", "said"),
    [
        ({"counts": {"truncated": 203}}, "the oldest 203 events of the history left out"),
        ({"counts": {"out_of_order": 1}}, "1 event sorted into order"),
        ({"counts": {"unknown_values": 1}}, "1 value never seen in training"),
        (
            {"counts": {"unknown_values": 1}, "unknown": ["context.device"]},
            "unknown to this bundle: context.device",
        ),
    ],
)
def test_what_the_server_counted_is_said_in_words(info: dict[str, Any], said: str) -> None:
    console = Console(file=io.StringIO(), width=100)
    show.homepage(console, Homepage(1, 1, None, (), info))
    assert said in console.file.getvalue().splitlines()  # type: ignore[attr-defined]


def test_titles_show_their_probability_and_a_score_only_without_one() -> None:
    for level, shown in ((4.0, ("13.5% embedding", "8.2% popular", "1.00 history")), (None, ("2.00 embedding",)),
                         (40.0, ("<0.1% embedding",))):  # fmt: skip
        console = Console(file=io.StringIO(), width=100)
        show.homepage(console, client.HomepageClient(transport=FakeServer(level=level)).homepage(1))
        text: str = console.file.getvalue()  # type: ignore[attr-defined]
        assert all(words in text for words in shown)


LOSSES = {"entity_id": 7.591, "action_type": 1.654, "genres": 11.214, "duration": 0.0}


@pytest.mark.parametrize("width", [80, 100])
def test_time_epoch_and_validation_stay_when_space_is_short(width: int) -> None:
    console = Console(file=io.StringIO(), width=width, force_terminal=True, color_system=None)
    with show.training_bar(console, epochs=24) as on_progress:
        on_progress(Progress(9, 70, 70, LOSSES, {"ndcg@10": 0.11424}))
        on_progress(Progress(10, 35, 70, LOSSES))
    text: str = console.file.getvalue()  # type: ignore[attr-defined]
    line = [line for line in text.replace("\r", "\n").splitlines() if "epoch 11/24  ndcg@10 0.1142" in line][-1]
    assert re.search(r"0:00:00 +epoch", line), "finished: the time it took, without 'left'"
    assert "entity_id" in line or width < 100
    assert line.endswith("…")


def test_a_bar_vanishes_when_the_work_fails() -> None:
    console = Console(file=io.StringIO(), width=80)

    def fail() -> None:
        with show.bar(console) as bar:
            bar.add_task("row ranker", total=None)
            raise ValueError("no such column")

    with pytest.raises(ValueError, match="no such column"):
        fail()
    assert console.file.getvalue() == ""  # type: ignore[attr-defined]
