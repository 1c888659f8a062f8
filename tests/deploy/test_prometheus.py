"""Alerts and dashboard: what they ask is PromQL, alerts are raised when they should be, and a person is told what to
do. That every metric in them exists is tests/test_end_to_end.py's, which has a server."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

from deploy_files import DEPLOY, PROMETHEUS, load_yaml, queries, selects_something, tool

PROMTOOL = ("promtool", "apt-get install prometheus")


def test_each_alert_is_raised_when_it_should_be_and_not_before() -> None:
    done = subprocess.run([tool(*PROMTOOL), "test", "rules", "rules_test.yaml"], cwd=PROMETHEUS, capture_output=True,
                          text=True, timeout=60)  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    tested = set(re.findall(r'alertname="(\w+)"', (PROMETHEUS / "rules_test.yaml").read_text("utf-8")))
    assert tested == {where for where, _ in queries() if where.startswith("Frontrow")}


def test_every_query_is_promql(tmp_path: Path) -> None:
    rules = [{"record": f"query:{i}", "expr": query} for i, (_, query) in enumerate(queries())]
    (tmp_path / "rules.json").write_text(json.dumps({"groups": [{"name": "all", "rules": rules}]}))
    done = subprocess.run([tool(*PROMTOOL), "check", "rules", str(tmp_path / "rules.json")], capture_output=True,
                          text=True, timeout=60)  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_scrape_job_is_a_configuration_and_has_the_name_that_the_queries_ask_for(tmp_path: Path) -> None:
    (config,) = load_yaml((PROMETHEUS / "prometheus.yaml").read_text("utf-8"))
    (job,) = config["scrape_configs"]
    assert all('job="frontrow"' in query or "frontrow:" in query for _, query in queries())
    assert job["job_name"] == "frontrow"
    assert [(PROMETHEUS / file).is_file() for file in config["rule_files"]] == [True]
    del job["kubernetes_sd_configs"], config["rule_files"]  # Debian's promtool is built without Kubernetes
    (tmp_path / "prometheus.json").write_text(json.dumps(config))
    check = [tool(*PROMTOOL), "check", "config", str(tmp_path / "prometheus.json")]
    done = subprocess.run(check, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


def test_each_alert_says_what_to_do_and_stands_in_the_readme() -> None:
    (rules,) = load_yaml((PROMETHEUS / "rules.yaml").read_text("utf-8"))
    alerts = [rule for group in rules["groups"] for rule in group["rules"] if "alert" in rule]
    readme = (DEPLOY / "README.md").read_text("utf-8")
    table = {name: bool(at_night.strip()) for name, at_night in re.findall(r"\| (Frontrow\w+) \|.*\|(.*)\|", readme)}
    assert table == {alert["alert"]: alert["labels"]["severity"] == "critical" for alert in alerts}
    assert all(alert["annotations"].keys() == {"summary", "action"} for alert in alerts)


def test_panels_have_names_and_do_not_overlap() -> None:
    panels = json.loads((DEPLOY / "grafana" / "dashboard.json").read_text("utf-8"))["panels"]
    places = [(p["gridPos"]["x"], p["gridPos"]["y"]) for p in panels]
    assert len(set(places)) == len({p["id"] for p in panels}) == len({p["title"] for p in panels}) == len(panels)
    assert all(p["gridPos"]["w"] == 12 and p["gridPos"]["x"] % 12 == p["gridPos"]["y"] % p["gridPos"]["h"] == 0
               for p in panels)  # fmt: skip


def test_the_reader_of_selectors_sees_labels() -> None:
    metrics = '# HELP nv_x about\nnv_x{model="homepage",version="1"} 3\nnv_y 4\n'
    for selector in ("nv_y", "nv_x", 'nv_x{job="any",model="homepage"}', 'nv_x{model=~"home.*|other"}'):
        assert selects_something(selector, metrics), selector
    for selector in ("nv_z", 'nv_x{model="catalogue"}', 'nv_x{model=~"page"}', 'nv_x{what="pages"}'):
        assert not selects_something(selector, metrics), selector
