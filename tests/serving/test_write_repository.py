"""The model repository that is written for one bundle."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from frontrow.serving import serve, triton_server
from frontrow.serving.triton_server import write_repository
from toy_models import ECHO, write_toy_models


@pytest.fixture(scope="module")
def templates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_toy_models(tmp_path_factory.mktemp("templates"))


def tree(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


def test_a_repository_is_written_again_the_same(templates: Path, tmp_path: Path) -> None:
    def write(version: int) -> dict[str, str]:
        write_repository(tmp_path, tmp_path / "out" / "models", ["echo"], version=version, templates=templates)
        return tree(tmp_path / "out")

    first = write(3)
    assert sorted(first) == ["models/echo/3/model.py", "models/echo/config.pbtxt"]
    assert first["models/echo/3/model.py"] == ECHO
    assert write(3) == first
    assert sorted(write(4)) == ["models/echo/4/model.py", "models/echo/config.pbtxt"]


@pytest.mark.parametrize(("gpu", "kind"), [(True, "KIND_GPU"), (False, "KIND_CPU")])
def test_instances_go_where_the_host_computes(
    gpu: bool, kind: str, templates: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(triton_server, "has_nvidia_gpu", lambda: gpu)
    models = write_repository(tmp_path, tmp_path / "models", ["echo"], version=1, instances=2, templates=templates)
    assert f"count: 2 kind: {kind}" in (models / "echo" / "config.pbtxt").read_text()


def test_what_the_model_reads_stands_in_its_config(templates: Path, tmp_path: Path) -> None:
    def parameters(**given: Any) -> list[str]:
        models = write_repository(tmp_path, tmp_path / "models", ["echo"], version=1, templates=templates, **given)
        return re.findall(r'parameters { key: "(\w+)" value', (models / "echo" / "config.pbtxt").read_text())

    assert parameters() == ["bundle_dir"]
    assert parameters(queue=7, bfloat16=True) == ["bundle_dir", "queue", "bfloat16"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bundle_dir": Path("/nowhere")}, "/nowhere is not a directory"),
        ({"models": ["ehco"]}, "no ehco; there are corrupt, echo, stubborn"),
        ({"version": 0}, "at least 1"),
        ({"instances": 0}, "at least 1"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_wrong_arguments_are_named(change: dict[str, object], message: str, templates: Path, tmp_path: Path) -> None:
    arguments = {"bundle_dir": tmp_path, "destination": tmp_path / "out", "models": ["echo"], "version": 1}
    with pytest.raises(ValueError, match=message):
        write_repository(**{**arguments, **change}, templates=templates)
    assert not (tmp_path / "out").exists()


def test_a_folder_that_is_no_repository_is_not_replaced(templates: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(ValueError, match="not replaced"):
        write_repository(tmp_path, tmp_path, ["echo"], version=1, templates=templates)
    assert (tmp_path / "thesis.txt").read_text() == "precious"


def test_a_config_may_not_set_what_is_written_here(tmp_path: Path) -> None:
    model = tmp_path / "templates" / "echo"
    (model / "1").mkdir(parents=True)
    (model / "config.pbtxt").write_text('name: "echo"\ninstance_group [ { kind: KIND_CPU } ]\n')
    (model / "1" / "model.py").touch()
    with pytest.raises(ValueError, match="sets instance_group"):
        write_repository(tmp_path, tmp_path / "out", ["echo"], version=1, templates=model.parent)


def test_every_packaged_model_can_be_written(tmp_path: Path) -> None:
    from importlib import resources

    folder = resources.files("frontrow.model_repository")
    models = [path.name for path in folder.iterdir() if path.joinpath("config.pbtxt").is_file()]
    if not models:
        pytest.skip("no packaged model yet")
    written = write_repository(tmp_path, tmp_path / "out", models, version=2)
    assert sorted(path.parent.parent.name for path in written.glob("*/2/model.py")) == sorted(models)


@pytest.mark.parametrize(
    ("gpus", "cores", "expected"),
    [(0, 2, 2), (0, 64, 4), (1, 16, 8), (1, 1, 1), (1, 64, 8), (4, 16, 2)],
)
def test_a_gpu_is_shared_by_instances_that_have_cores(
    gpus: int, cores: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`expected` stands in the config, and Triton Server starts so many on each GPU."""
    monkeypatch.setattr(serve, "nvidia_gpus", lambda: gpus)
    monkeypatch.setattr(serve.os, "sched_getaffinity", lambda _: set(range(cores)))
    assert serve.default_instances() == expected
