"""What stands in deploy/ and the Dockerfile, read for tests."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "deploy"
KUBERNETES, PROMETHEUS = DEPLOY / "kubernetes", DEPLOY / "prometheus"
_SELECTOR = re.compile(r"\b((?:nv|frontrow)_\w+)(?:\{([^}]*)\})?")
_MATCHER = re.compile(r'(\w+)(=~|=)"([^"]*)"')
# Labels that Prometheus adds when it scrapes.
_SCRAPED = ("job", "instance", "pod", "namespace")


def tool(name: str, package: str) -> str:
    """The path of a program; skips the test, naming the package, where it is not installed."""
    if found := shutil.which(name, path=f"{Path(sys.executable).parent}:{os.environ.get('PATH', os.defpath)}"):
        return found
    pytest.skip(f"{name} is not installed: {package}")


def load_yaml(text: str) -> list[Any]:
    """The documents of a YAML text."""
    yaml = pytest.importorskip("yaml", reason="PyYAML is not installed")
    return [document for document in yaml.safe_load_all(text) if document]


def rendered(folder: Path) -> dict[str, Any]:
    """The objects of a kustomization, by kind; each kind is there once."""
    kubectl = tool("kubectl", "https://kubernetes.io/docs/tasks/tools")
    done = subprocess.run([kubectl, "kustomize", str(folder)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    objects = load_yaml(done.stdout)
    assert len({o["kind"] for o in objects}) == len(objects)
    return {o["kind"]: o for o in objects}


def entrypoint() -> list[str]:
    """The words that the image starts with, the same in each of its variants."""
    found = set(re.findall(r"^ENTRYPOINT (.*)$", (ROOT / "Dockerfile").read_text("utf-8"), re.MULTILINE))
    assert len(found) == 1
    return json.loads(found.pop())


def queries() -> Iterator[tuple[str, str]]:
    """(where it stands, PromQL) of the alerts, the dashboard and the autoscaler."""
    (rules,) = load_yaml((PROMETHEUS / "rules.yaml").read_text("utf-8"))
    for rule in (r for group in rules["groups"] for r in group["rules"]):
        yield rule.get("alert") or rule["record"], rule["expr"]
    for panel in json.loads((DEPLOY / "grafana" / "dashboard.json").read_text("utf-8"))["panels"]:
        for target in panel["targets"]:
            yield panel["title"], target["expr"].replace("$__rate_interval", "5m")
    (scaled,) = load_yaml((KUBERNETES / "autoscale" / "scaled_object.yaml").read_text("utf-8"))
    for trigger in scaled["spec"]["triggers"]:
        yield "ScaledObject", trigger["metadata"]["query"]


def selectors() -> set[tuple[str, str]]:
    """(where it stands, selector) of all queries, each selector as `name{label="value"}` without what is scraped."""
    return {(where, match[0]) for where, query in queries() for match in _SELECTOR.finditer(query)}


def selects_something(selector: str, metrics: str) -> bool:
    """Whether a selector matches a line of a metrics endpoint."""
    match = _SELECTOR.fullmatch(selector)
    assert match is not None
    wanted = [(label, value if how == "=~" else re.escape(value))
              for label, how, value in _MATCHER.findall(match[2] or "") if label not in _SCRAPED]  # fmt: skip
    for line in metrics.splitlines():
        found = _SELECTOR.match(line)
        if found and found[1] == match[1]:
            labels = {label: value for label, _, value in _MATCHER.findall(found[2] or "")}
            if all(re.fullmatch(pattern, labels.get(label, "")) for label, pattern in wanted):
                return True
    return False
