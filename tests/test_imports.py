"""The import directions of the design, read off the source; and what keeps a folder from shadowing the package."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("kernels", "foundation", "serving", "training", "clients", "benchmarks", "model_repository")
SOURCES = [f for p in PACKAGES for f in sorted((ROOT / p).rglob("*.py"))]
MAY_IMPORT = {
    "kernels": set(),
    "foundation": {"kernels"},
    "serving": {"foundation", "kernels"},
    "training": {"foundation", "serving", "kernels"},
    "clients": {"foundation.schema"},
    "model_repository": {"serving", "foundation"},
}
# The command line runs where everything is installed, and imports lazily, per command.
EVERYTHING = ("clients/cli.py", "clients/demo.py", "clients/reproduce.py", "clients/serve.py")


def imports(file: Path) -> Iterator[str]:
    """Modules a file imports anywhere in it, relative ones resolved: `frontrow.foundation.schema`, `numpy`."""
    package = ("frontrow", *file.relative_to(ROOT).parent.parts)
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (a.name for a in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) + 1 - node.level] if node.level else ()
            module = ".".join((*base, *([node.module] if node.module else [])))
            # `from . import x` and `from ..foundation import x` name modules after the import.
            yield from (f"{module}.{a.name}" for a in node.names) if module.count(".") < 2 else (module,)


def own(file: Path) -> set[str]:
    """What a file imports from other packages of frontrow: `foundation.schema`."""
    package = file.relative_to(ROOT).parts[0]
    found = {m.removeprefix("frontrow.") for m in imports(file) if m.startswith("frontrow.")}
    return {m for m in found if m.split(".")[0] != package}


def third_party(file: Path) -> set[str]:
    names = {m.split(".")[0] for m in imports(file)}
    return names - set(sys.stdlib_module_names) - {"frontrow", "__future__"}


def test_the_resolver_sees_every_form_of_import(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    (tmp_path / "serving").mkdir()
    file = tmp_path / "serving" / "x.py"
    file.write_text(
        "import torch.nn as n\nimport os\nfrom ..kernels.a import b\nfrom .store import c\nfrom . import d\n"
        "def f():\n    from frontrow.training import e\n    from ..foundation import schema\n"
    )
    assert own(file) == {"kernels.a", "training.e", "foundation.schema"}
    assert third_party(file) == {"torch"}


@pytest.mark.parametrize("file", SOURCES, ids=lambda f: str(f.relative_to(ROOT)))
def test_imports_follow_the_direction(file: Path) -> None:
    name = str(file.relative_to(ROOT))
    allowed = MAY_IMPORT.get(name.split("/")[0])
    if allowed is None or name in EVERYTHING:
        return
    assert {m for m in own(file) if m not in allowed and m.split(".")[0] not in allowed} == set()


@pytest.mark.parametrize("file", sorted((ROOT / "kernels").glob("*.py")), ids=lambda f: f.name)
def test_kernels_import_little(file: Path) -> None:
    assert third_party(file) <= {"torch", "triton", "faiss", "liger_kernel"}


def test_kernels_run_with_nothing_but_torch() -> None:
    code = """
import sys
for name in ("triton", "faiss", "liger_kernel"):
    sys.modules[name] = None
import torch
from frontrow.kernels.candidate_scoring import candidate_scoring
from frontrow.kernels.catalogue_search import catalogue_search
from frontrow.kernels.event_embedding import event_embedding
from frontrow.kernels.linear_cross_entropy import linear_cross_entropy
vectors, titles = torch.ones(2, 4), torch.eye(9)[:, :4].contiguous()
candidate_scoring(vectors, titles, torch.tensor([[0, 8], [3, 1]]), 1)
candidate_scoring(vectors[:1], titles, torch.tensor([[0, 8]]), 1)
catalogue_search(vectors, titles, 3)
event_embedding(torch.zeros(2, 1, dtype=torch.int32), [titles], [(0, 1)], torch.ones(8, 4))
linear_cross_entropy(vectors, titles, torch.tensor([1, 2]))
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_the_schema_needs_only_numpy() -> None:
    assert third_party(ROOT / "foundation" / "schema.py") == {"numpy"}
    assert own(ROOT / "foundation" / "schema.py") == set()
    assert list(imports(ROOT / "foundation" / "__init__.py")) == []


def test_no_folder_shadows_the_installed_package() -> None:
    assert not (ROOT / "frontrow").exists()


@pytest.mark.parametrize("file", SOURCES, ids=lambda f: str(f.relative_to(ROOT)))
def test_files_stay_short(file: Path) -> None:
    assert len(file.read_text("utf-8").splitlines()) < 450


def test_every_package_is_declared() -> None:
    declared = (ROOT / "pyproject.toml").read_text("utf-8")
    assert [p for p in PACKAGES if f'"frontrow.{p}" = "{p}"' not in declared] == []
    assert all((ROOT / p / "__init__.py").is_file() for p in PACKAGES)
