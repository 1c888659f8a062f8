"""The command line as a person uses it: the demo from data to page, and what each command says when it cannot."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FRONTROW = str(Path(sys.executable).with_name("frontrow"))


def run(*arguments: str, cwd: Path, text: str | None = None, timeout: float = 120) -> subprocess.CompletedProcess[str]:
    return subprocess.run([FRONTROW, *arguments], cwd=cwd, input=text, capture_output=True, text=True, timeout=timeout)


def free_ports() -> list[str]:
    sockets = [socket.socket() for _ in range(3)]
    for s in sockets:
        s.bind(("127.0.0.1", 0))
    ports = [str(s.getsockname()[1]) for s in sockets]
    for s in sockets:
        s.close()
    return ["--grpc-port", ports[0], "--http-port", ports[1], "--metrics-port", ports[2]]


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory, movielens: Path) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """A folder in which a short demo ran on real data, and what it printed."""
    home = tmp_path_factory.mktemp("demo")
    (home / "data").mkdir()
    (home / "data" / "movielens-100k").symlink_to(movielens)
    return home, run("demo", "--epochs", "1", *free_ports(), cwd=home)


def test_the_demo_ends_with_a_homepage_of_a_real_member(demo: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    _, done = demo
    assert done.returncode == 0, done.stderr
    assert "What member 42 did last" in done.stdout
    rows = re.findall(r"^ ?\d+\. .+  0\.\d{3}$", done.stdout, re.MULTILINE)
    assert len(rows) >= 5
    sources = re.findall(r"-?\d+\.\d\d (?:embedding|item_item|user_user|popular|new|explore)", done.stdout)
    assert len(sources) >= 5 * len(rows) * 0.8  # a short row may have four


def test_the_demo_leaves_no_process_behind(demo: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    home, _ = demo
    assert "frontrow-repository" not in subprocess.run(["ps", "-wweo", "args"], capture_output=True, text=True).stdout
    assert (home / "bundles" / "1" / "manifest.json").is_file()


def test_a_second_demo_reuses_what_is_there(demo: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    home, _ = demo
    again = run("demo", "--epochs", "1", "--member", "7", *free_ports(), cwd=home)
    assert again.returncode == 0, again.stderr
    assert "is trained on this data already" in again.stdout
    assert "Homepage of member 7" in again.stdout
    assert [p.name for p in (home / "bundles").iterdir()] == ["1"]


def test_evaluate_prints_one_json_object(demo: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    home, _ = demo
    table = json.loads(run("evaluate", "--run", "runs/demo", "--json", cwd=home).stdout)
    assert {"hr@10", "ndcg@10", "mrr", "coverage", "popularity_bias", "novelty_bits"} <= set(table["model"])
    assert set(table["baselines"]) == {"popularity", "item_item_cf", "user_user_cf"}
    assert table["members"] == 943
    assert table["baselines"]["popularity"]["hr@10"] == pytest.approx(0.0859, abs=0.002)


def test_export_takes_a_row_that_a_user_added(demo: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    home, _ = demo
    rows = json.loads((home / "bundles" / "1" / "rows.json").read_text("utf-8"))
    rows["rows"].append(
        {"row_id": 900, "label": "Old noir", "where": "'Film-Noir' in genres and year < 1960", "pin": 0}
    )
    (home / "rows.json").write_text(json.dumps(rows), "utf-8")
    done = run("export", "--run", "runs/demo", "--bundles", "mine", "--rows", "rows.json", "--json", cwd=home)
    assert json.loads(done.stdout)["version"] == 1, done.stderr
    rows["rows"][-1]["where"] = "genre == 1"
    (home / "rows.json").write_text(json.dumps(rows), "utf-8")
    refused = run("export", "--run", "runs/demo", "--bundles", "mine", "--rows", "rows.json", cwd=home)
    assert refused.returncode == 1
    assert "row 900 ('Old noir')" in refused.stderr
    assert "no column 'genre'" in refused.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["homepage"], "give --member ID, or --history"),
        (["homepage", "--member", "1", "--url", "localhost:1"], "no server at localhost:1"),
        (["homepage", "--member", "1", "--rows", "0"], "rows is 0"),
        (["homepage", "--member", "1", "--titles", "1000000"], "titles is 1000000"),
        (["homepage", "--member", "-4"], "member_id is -4"),
        (["homepage", "--member", "1", "--context", "{"], "--context is not JSON"),
        (["homepage", "--history", "absent.json"], "absent.json"),
        (["train", "--data", "nowhere"], "nowhere/events.parquet is missing"),
        (["evaluate", "--run", "nowhere"], "nowhere is not a training run"),
        (["export", "--run", "nowhere"], "nowhere is not a training run"),
        (["serve", "--bundles", "nowhere"], "no bundle in nowhere"),
        (["serve", "--bundle", "nowhere"], "is not a bundle"),
        (["data", "movielens-100k", "--source", "nowhere", "--folder", "x"], "nowhere holds neither"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_what_cannot_be_done_is_one_clear_line(arguments: list[str], said: str, tmp_path: Path) -> None:
    done = run(*arguments, cwd=tmp_path)
    assert done.returncode == 1
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize("text", ["not json", '{"a": 1}', "[1, 2", '{"timestamp": 1}\n{"timestamp": '])
def test_a_history_that_is_no_list_of_events_is_refused(text: str, tmp_path: Path) -> None:
    done = run("homepage", "--history", "-", cwd=tmp_path, text=text)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert done.stderr.startswith("frontrow: -")


def test_doctor_prints_one_json_object(tmp_path: Path) -> None:
    done = run("doctor", "--json", cwd=tmp_path)
    checks = {c["name"]: c["status"] for c in json.loads(done.stdout)["checks"]}
    assert checks["tritonserver"] == "ok"
    assert done.returncode == (3 if "missing" in checks.values() else 0)


def test_the_readme_shows_every_command() -> None:
    readme = (ROOT / "README.md").read_text("utf-8")
    from frontrow.clients.cli import app

    names = [c.name or c.callback.__name__ for c in app.registered_commands if c.callback is not None]
    assert [n for n in names if f"frontrow {n}" not in readme] == []
    assert "frontrow data movielens-100k" in readme


def test_the_readme_tree_names_only_what_exists() -> None:
    readme = (ROOT / "README.md").read_text("utf-8")
    tree = re.search(r"<!-- tree -->\n```\n(.*?)```", readme, re.DOTALL)
    assert tree is not None
    folder, named = "", set()
    for line in tree[1].splitlines():
        name = line.split()[0] if line.strip() else ""
        if not line.startswith(" "):
            folder = name if name.endswith("/") else ""
            named.add(name)
        elif name.endswith((".py", "/", ".json", ".md")):
            named.add(folder + name)
    assert [n for n in sorted(named) if n and not (ROOT / n).exists()] == []
    packages = ("kernels", "foundation", "serving", "training", "clients", "benchmarks")
    files = {str(p.relative_to(ROOT)) for folder in packages for p in (ROOT / folder).glob("*.py")}
    assert sorted(f for f in files - named if not f.endswith("__init__.py")) == []


def test_the_dockerfile_installs_what_exists() -> None:
    import tomllib

    text = (ROOT / "Dockerfile").read_text("utf-8")
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"]
    wanted = re.search(r"\.whl\)\[([\w,]+)\]", text)
    assert wanted is not None
    assert set(wanted[1].split(",")) <= set(extras)
    assert "nvidia-pytriton" not in str([extras[name] for name in wanted[1].split(",")])
    assert 'ENTRYPOINT ["frontrow", "serve"' in text
