"""Where a number comes from: device, versions, commit, date; and the files that results live in."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import re
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
TRIALS = Path("runs/trials")


def device() -> str:
    """The GPU if torch sees one, else the processor, with the cores this process may use."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    model = platform.machine()
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        model = next((line.split(":", 1)[1].strip() for line in file if line.startswith("model name")), model)
    return f"{model}, {len(os.sched_getaffinity(0))} cores"


def slug(name: str) -> str:
    """A device's name as part of a file's."""
    return re.sub("[^a-z0-9]+", "-", name.lower()).strip("-")


def provenance(command: str) -> dict[str, Any]:
    """What stands in every result file."""
    git = ["git", "-C", str(Path(__file__).parent.parent)]
    name = subprocess.run([*git, "describe", "--always", "--abbrev=12"], capture_output=True, text=True)
    commit = name.stdout.strip()
    # Results of other benchmarks that lie about uncommitted do not make the code another.
    changed = [*git, "diff", "--quiet", "HEAD", "--", ".", ":(exclude)benchmarks/results"]
    if commit and subprocess.run(changed, capture_output=True).returncode:
        commit += "-dirty"
    packages = ("torch", "numpy", "faiss-cpu", "nvidia-pytriton")
    return {
        "command": command,
        "device": device(),
        "versions": {"python": platform.python_version(), **{p: _version(p) for p in packages}},
        "commit": commit or "unknown",
        "date": datetime.now(UTC).date().isoformat(),
    }


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def write_result(name: str, content: dict[str, Any], trial: bool = False) -> Path:
    """results/<name>.json; of a trial, whose settings are not those that are published, runs/trials/<name>.json."""
    folder = TRIALS if trial else RESULTS
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    path.write_text(json.dumps(content, indent=1) + "\n", "utf-8")
    return path
