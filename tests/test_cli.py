"""The command line as a person uses it: the demo from data to page, and what each command says when it cannot."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
from frontrow.clients import Schema
from frontrow.foundation.schema import default_schema
from frontrow.training.data import write_dataset
from frontrow.training.export import LIKED_ACTIONS
from server_process import FRONTROW, eventually, free_ports, options, start, wait_ready

ROOT = Path(__file__).parent.parent


def run(
    *arguments: str, cwd: Path, text: str | bytes | None = None, timeout: float = 120
) -> subprocess.CompletedProcess[str]:
    """A command in a folder, its temporary files below it."""
    (cwd / "tmp").mkdir(exist_ok=True)
    done = subprocess.run(
        [str(FRONTROW), *arguments], cwd=cwd, input=text.encode() if isinstance(text, str) else text,
        capture_output=True, timeout=timeout, env={**os.environ, "TMPDIR": str(cwd / "tmp"), "COLUMNS": "100"},
    )  # fmt: skip
    return subprocess.CompletedProcess(done.args, done.returncode, done.stdout.decode(), done.stderr.decode())


def run_python(code: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], cwd=cwd, capture_output=True, text=True, timeout=60)


def readme_code() -> str:
    """The README's Python, one program; at its end the page of each example was made."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text("utf-8"), re.DOTALL)
    return "\n".join([*blocks, "assert anonymous.fallback is None and member.member_id == 42"])


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory, movielens: Path) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """A folder in which a short demo ran on real data, and what it printed."""
    home = tmp_path_factory.mktemp("demo")
    (home / "data").mkdir()
    (home / "data" / "movielens-100k").symlink_to(movielens)
    return home, run("demo", "--epochs", "1", *options(free_ports()), cwd=home)


def test_the_demo_ends_with_a_homepage_of_a_real_member(demo: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    _, done = demo
    assert done.returncode == 0, done.stderr
    assert "What member 42 did last" in done.stdout
    rows = re.findall(r"^ ?\d+\. .+  0\.\d{3}$", done.stdout, re.MULTILINE)
    assert len(rows) >= 5
    sources = re.findall(r"(?:\d+\.\d%|<0\.1%) (?:embedding|item_item|user_user|popular|new|explore)", done.stdout)
    assert len(sources) >= 5 * len(rows) * 0.8  # a short row may have four


def test_the_demo_leaves_no_process_behind(demo: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    home, _ = demo
    assert str(home / "tmp") not in subprocess.run(["ps", "-wweo", "args"], capture_output=True, text=True).stdout
    assert list((home / "tmp").glob("frontrow*")) == []
    assert (home / "bundles" / "1" / "manifest.json").is_file()


def test_a_second_demo_reuses_what_is_there(demo: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    home, _ = demo
    again = run("demo", "--epochs", "1", "--member", "7", *options(free_ports()), cwd=home)
    assert again.returncode == 0, again.stderr
    assert "is trained on this data already" in again.stdout
    assert "runs/demo is bundle bundles/1 already" in again.stdout
    for ranked_by in ("user-user CF", "Frontrow, not told when", "share of hits in training"):
        assert f"│ {ranked_by} " in again.stdout
    assert "Homepage of member 7" in again.stdout
    assert [p.name for p in (home / "bundles").iterdir()] == ["1"]


def test_the_page_has_two_axes_and_nothing_twice_or_rated(demo: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    home, _ = demo
    events = parquet.read_table(home / "data" / "movielens-100k" / "events.parquet").to_pylist()
    rated = {e["what"]["entity_id"] for e in events if e["member_id"] == 42}
    process = start(home / "bundles" / "1", home, ports := free_ports())
    try:
        ready = wait_ready(process, home)
        url = f"localhost:{ports['grpc_port']}"
        asked = run("homepage", "--member", "42", "--url", url, "--json", cwd=home)
        said = run_python(readme_code().replace("localhost:8001", url), cwd=home)
        found = run("search", "matr", "--member", "42", "--url", url, cwd=home)
        alike = run("similar", "godfather", "--member", "42", "--url", url, "--json", cwd=home)
        by_id = run("similar", str(json.loads(alike.stdout)["title_id"]), "--url", url, "--titles", "5", cwd=home)
        nothing = run("similar", "no such film at all", "--url", url, cwd=home)
        http = run("homepage", "--member", "42", "--url", f"localhost:{ports['http_port']}", cwd=home)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)
    assert "bundles/1 of movielens-100k" in ready
    assert f"frontrow homepage --url {url} --member 42" in (home / "out").read_text()
    page = json.loads(asked.stdout)
    assert len([row for row in page["rows"] if len(row["titles"]) >= 5]) >= 5
    shown = [title["title_id"] for row in page["rows"] for title in row["titles"]]
    assert len(set(shown)) == len(shown)
    assert rated
    assert not rated & set(shown)
    assert "give the gRPC port" in http.stderr
    assert re.match(r"Found, for member 42 \(bundle 1\)\n", found.stdout), found.stderr
    assert re.search(r"^ +1 .+ lexical *$", found.stdout, re.MULTILINE)
    assert json.loads(alike.stdout)["label"] == "More like The Godfather"
    assert len(json.loads(alike.stdout)["titles"]) == 20
    assert by_id.stdout.startswith("More like The Godfather, for an anonymous member")
    assert len(re.findall(r"^ +\d .+ neighbour *$", by_id.stdout, re.MULTILINE)) == 5
    assert (nothing.returncode, "no title has the id or a name like 'no such film" in nothing.stderr) == (1, True)
    assert said.returncode == 0, said.stderr
    assert page["rows"][0]["label"] in said.stdout


def test_a_demo_of_an_unknown_member_says_so(demo: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    home, _ = demo
    done = run("demo", "--epochs", "1", "--member", "99999", *options(free_ports()), cwd=home)
    assert "Member 99999 is not in the data" in done.stdout
    assert "What member" not in done.stdout
    assert max(len(line) for line in done.stdout.split("The server is stopped.")[1].splitlines()) <= 80


def test_evaluate_of_the_newest_run_prints_one_json_object(
    demo: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    home, _ = demo
    table = json.loads(run("evaluate", "--json", cwd=home).stdout)
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
    assert refused.stderr.startswith("frontrow: rows.json: row 900"), "no progress bar before it"
    assert "row 900 ('Old noir')" in refused.stderr
    assert "no column 'genre'" in refused.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["homepage"], "give --member ID, or --history"),
        (["homepage", "--member", "1", "--url", "localhost:1"], "no server at localhost:1"),
        (["homepage", "--member", "1", "--url", "localhost:1"], "a server elsewhere: --url host:port"),
        (["homepage", "--member", "1", "--url", "nonsense"], "--url is 'nonsense'; give host:port"),
        (["homepage", "--member", "1", "--timeout", "-1"], "--timeout is -1.0"),
        (["homepage", "--member", "1", "--context", "{"], "--context is not JSON"),
        (["homepage", "--history", "absent.json"], "frontrow: absent.json: No such file or directory"),
        (["train", "--data", "nowhere"], "nowhere/events.parquet is missing"),
        (["train", "--data", "nowhere", "--size", "small"], "nowhere/events.parquet is missing"),
        (["evaluate", "--run", "nowhere"], "nowhere is not a training run: it has no run.json"),
        (["evaluate"], "no training run in runs/"),
        (["export", "--run", "nowhere"], "nowhere is not a training run"),
        (["serve", "--bundles", "nowhere"], "no bundle in nowhere"),
        (["serve", "--bundle", "nowhere"], "nowhere does not exist"),
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


@pytest.mark.parametrize(
    ("option", "value"), [("--member", "-4"), ("--rows", "0"), ("--titles", "1000000")], ids=lambda v: v
)
def test_a_number_out_of_range_is_wrong_usage(option: str, value: str, tmp_path: Path) -> None:
    done = run("homepage", "--member", "1", option, value, cwd=tmp_path)
    assert done.returncode == 2
    assert f"Invalid value for '{option}'" in done.stderr


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"not json", "stdin is not JSON"),
        (b'{"a": 1}', "stdin holds no list of events"),
        (b"[1, 2", "stdin is not JSON"),
        (b"[5]", "stdin: event 0 is 5, not a JSON object"),
        (b'{"timestamp": 1}\n{"timestamp": ', "stdin, read as one JSON object a line: line 2 is not JSON"),
        (b'["\xe9"]', "stdin is not UTF-8 text"),
        (b"[" * 100_000, "stdin is nested too deeply"),
        (b"[" + b"9" * 5000 + b"]", "stdin holds a number of too many digits"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_a_history_that_is_no_list_of_events_is_refused(text: bytes, said: str, tmp_path: Path) -> None:
    done = run("homepage", "--history", "-", cwd=tmp_path, text=text)
    assert done.returncode == 1
    assert done.stderr.startswith(f"frontrow: {said}")
    assert done.stderr.count("\n") == 1


def copies(tiny_folder: Path, folder: Path, times: int) -> Path:
    """A data set of so many times the tiny one's members."""
    events = parquet.read_table(tiny_folder / "events.parquet").to_pylist()
    several = [{**e, "member_id": e["member_id"] + 1000 * i} for i in range(times) for e in events]
    write_dataset(folder, pa.Table.from_pylist(several), parquet.read_table(tiny_folder / "titles.parquet"))
    return folder


def test_training_stops_on_ctrl_c_goes_on_and_is_not_overwritten(tiny_folder: Path, tmp_path: Path) -> None:
    # Of some size, or it may have ended before the signal comes.
    command = ["train", "--data", str(copies(tiny_folder, tmp_path / "data", 20)), "--run", "mine"]
    process = subprocess.Popen([str(FRONTROW), *command], cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    assert eventually(lambda: (tmp_path / "mine" / "checkpoint.pt").exists(), 60)
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=30)[1].strip() == "stopped; go on with --resume"
    assert process.returncode == 130
    other = run(*command, "--resume", "--epochs", "2", cwd=tmp_path)
    assert other.stderr.startswith("frontrow: mine cannot be resumed: epochs was 24, now 2"), "no progress bar before"
    refused = run(*command, cwd=tmp_path)
    assert refused.returncode == 1
    assert "mine holds a run already; go on with it (--resume)" in refused.stderr
    assert json.loads(run(*command, "--overwrite", "--epochs", "1", "--json", cwd=tmp_path).stdout)["epoch"] == 1


def test_under_torchrun_one_process_prints(tiny_folder: Path, tmp_path: Path) -> None:
    """As the README has it: `--` keeps torchrun from taking --run for one of its own options."""
    copies(tiny_folder, tmp_path / "data", 4)  # a batch for each
    launch = [
        str(FRONTROW.with_name("torchrun")),
        "--nproc-per-node",
        "2",
        "--master-port",
        str(free_ports()["grpc_port"]),
    ]
    command = [*launch, "-m", "--", "frontrow.clients.cli", "train", "--run", "mine", "--epochs", "1", "--json"]
    done = subprocess.run([*command, "--data", "data"], cwd=tmp_path, capture_output=True, text=True)
    assert json.loads(done.stdout)["run"] == "mine", done.stderr
    done = subprocess.run([*command, "--data", "nowhere"], cwd=tmp_path, capture_output=True, text=True)
    assert "frontrow: nowhere/events.parquet is missing" in done.stderr
    assert "torchrun --nproc-per-node 2 -m -- frontrow.clients.cli train" in (ROOT / "README.md").read_text("utf-8")


@pytest.mark.parametrize(("command", "extra"), [("train", "train"), ("serve", "serve"), ("demo", "serve,train")])
def test_a_client_only_install_names_the_extra_that_a_command_needs(command: str, extra: str, tmp_path: Path) -> None:
    code = f"import sys; sys.modules['torch'] = None; sys.argv = ['frontrow', {command!r}]\n"
    code += "from frontrow.clients.cli import main; main()"
    done = run_python(code, cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith(f"frontrow: torch is not installed: `frontrow {command}` needs frontrow[{extra}]")


def test_every_command_has_a_summary_that_fits_and_the_version_is_told(tmp_path: Path) -> None:
    shown = run("--help", cwd=tmp_path).stdout
    assert "..." not in shown.split("Commands:")[1]
    order = re.findall(r"^  (\w+) ", shown.split("Commands:")[1], re.MULTILINE)
    asking = ["homepage", "search", "similar"]
    assert order == ["data", "train", "evaluate", "export", "serve", *asking, "demo", "reproduce", "bench", "doctor"]
    assert re.fullmatch(r"frontrow \d+\.\d+\.\d+\n", run("--version", cwd=tmp_path).stdout)


def test_docs_show_the_default_schema_and_likes() -> None:
    assert Schema.load(ROOT / "docs" / "schema.json") == default_schema()
    readme = (ROOT / "README.md").read_text("utf-8")
    assert all(f"`{action}`" in readme for action in LIKED_ACTIONS)


def test_doctor_prints_one_json_object(tmp_path: Path) -> None:
    done = run("doctor", "--json", cwd=tmp_path)
    checks = {c["name"]: c["status"] for c in json.loads(done.stdout)["checks"]}
    assert checks["tritonserver"] == "ok"
    assert done.returncode == (3 if {"missing", "wrong"} & set(checks.values()) else 0)


def test_the_readme_shows_every_command() -> None:
    readme = (ROOT / "README.md").read_text("utf-8")
    from frontrow.clients.cli import app

    names = [c.name or c.callback.__name__ for c in app.registered_commands if c.callback is not None]
    assert [n for n in names if f"frontrow {n}" not in readme] == []


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


@pytest.mark.skipif(Path("/dev/nvidia0").exists(), reason="it would measure")
def test_bench_runs_a_benchmark_with_its_own_options(tmp_path: Path) -> None:
    helped = run("bench", "kernels", "--help", cwd=tmp_path)
    assert "--op" in helped.stdout
    without = run("bench", "kernels", "--out", "here", cwd=tmp_path)
    assert (without.returncode, "no GPU" in without.stderr, (tmp_path / "here").exists()) == (2, True, False)
    assert run("bench", "nothing", cwd=tmp_path).returncode == 2
