"""The wheel alone serves a bundle: nothing of the checkout is needed, not even to be there."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest
from frontrow.foundation.schema import WIRE
from frontrow.serving.triton_server import ServerNotFound, find_tritonserver
from server_process import free_ports, start, wait_ready

pytest.importorskip("build", reason="the package 'build' is not installed")
ROOT = Path(__file__).parents[1]
PACKAGES = ("kernels", "foundation", "serving", "training", "clients", "benchmarks", "model_repository")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, so that setuptools' own folders do not land in the checkout."""
    source, out = tmp_path_factory.mktemp("source") / "frontrow", tmp_path_factory.mktemp("wheel")
    source.mkdir()
    for package in PACKAGES:
        shutil.copytree(ROOT / package, source / package, ignore=shutil.ignore_patterns("__pycache__"))
    for file in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / file, source / file)
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(source)]
    done = subprocess.run(build, capture_output=True, text=True, timeout=120, cwd=out)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    (found,) = out.glob("frontrow-*.whl")
    return found


def test_the_wheel_holds_every_module_and_all_that_triton_server_needs(wheel: Path) -> None:
    held = set(zipfile.ZipFile(wheel).namelist())
    modules = {f"frontrow/{file.relative_to(ROOT)}" for p in PACKAGES for file in (ROOT / p).glob("*.py")}
    served = {f"frontrow/model_repository/{m}/{file}" for m in WIRE for file in ("config.pbtxt", "1/model.py")}
    typed = {f"frontrow/{p}/py.typed" for p in PACKAGES if p != "model_repository"}
    assert not (modules | served | typed) - held
    strangers = {name for name in held if not name.startswith(("frontrow/", "frontrow-"))}
    assert not strangers, "nothing else becomes importable"
    assert not {name for name in held if name.startswith("frontrow/tests") or "__pycache__" in name}


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """bin/ of a fresh environment with the wheel and, through a .pth file, the packages of this one. A .pth file adds a
    folder without reading the .pth files in it, so the editable install of the checkout stays out."""
    home = tmp_path_factory.mktemp("environment")
    venv.create(home, with_pip=False, symlinks=True)
    python = home / "bin" / "python"
    install = [sys.executable, "-m", "pip", "--python", str(python), "install", "--no-deps", "--quiet", "--no-index"]
    done = subprocess.run([*install, "--no-compile", str(wheel)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    ours = sysconfig.get_path("purelib")
    (theirs,) = home.glob("lib/python3*/site-packages")
    (theirs / "packages_of_the_tests.pth").write_text(f"{ours}\n")
    code = "import frontrow.serving.serve as s, numpy; print(s.__file__)"
    found = subprocess.run([python, "-c", code], capture_output=True, text=True, timeout=60, cwd=home, check=True)
    assert Path(found.stdout.strip()).is_relative_to(home), "else the checkout is tested, not the wheel"
    return home / "bin"


def test_the_wheel_serves_a_bundle_outside_the_checkout(
    environment: Path, tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    try:
        find_tritonserver()
    except ServerNotFound as error:
        pytest.skip(str(error))
    for name in ("PYTHONPATH", "PYTHONDONTWRITEBYTECODE"):
        monkeypatch.delenv(name, raising=False)
    ports = free_ports()
    server = start(tiny_bundle, tmp_path, ports, frontrow=environment / "frontrow")
    try:
        wait_ready(server, tmp_path)
        ask = [str(environment / "frontrow"), "homepage", "--member", "1001", "--rows", "3", "--titles", "5", "--json",
               "--url", f"127.0.0.1:{ports['grpc_port']}"]  # fmt: skip
        done = subprocess.run(ask, capture_output=True, text=True, timeout=60, cwd=tmp_path, env=dict(os.environ))
        assert done.returncode == 0, done.stderr
        page = json.loads(done.stdout)
    finally:
        server.terminate()
        server.wait(30)
    assert page["member_id"] == 1001
    assert [len(row["titles"]) for row in page["rows"]] == [5, 5, 5]
    assert page["rows"][0]["titles"][0]["name"].startswith("Title ")
    assert server.returncode == 0
    # Only the models in the server import this module, and what is imported is compiled.
    assert list(environment.parent.glob("lib/*/site-packages/frontrow/serving/__pycache__/triton_model.*.pyc"))
