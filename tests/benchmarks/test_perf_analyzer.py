"""perf_analyzer is found, or laid out with the libraries that the host lacks; what is missing is named."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from frontrow.benchmarks import perf_analyzer
from frontrow.benchmarks.perf_analyzer import (
    PerfAnalyzerMissing,
    _check_host,
    find_perf_analyzer,
    how_to_get,
    install,
    lay_out,
)

PROGRAM = b"#!/bin/sh\necho $1 of $LD_LIBRARY_PATH\n"


def lacks(*libraries: str):
    """Stands for ldd: those of the libraries that are not in the folder."""
    return lambda folder: [name for name in libraries if not (folder / name).exists()]


def test_the_program_starts_with_the_libraries_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(perf_analyzer, "missing_libraries", lacks("libb64.so.0d", "libcudart.so.12"))
    packages = tmp_path / "packages" / "nvidia_pytriton.libs"
    packages.mkdir(parents=True)
    for name in ("libb64-98cb6333.so.0d", "libcudart-09529672.so.12.6.77"):
        (packages / name).write_text(name)
    launcher = lay_out(PROGRAM, tmp_path / "a venv", packages.parent)
    said = subprocess.run([launcher, "--version"], capture_output=True, text=True, env={"PATH": "/bin:/usr/bin"}).stdout
    folder = tmp_path / "a venv" / "lib" / f"perf_analyzer-{perf_analyzer.VERSION}"
    assert said == f"--version of {folder}\n"
    assert (folder / "libcudart.so.12").read_text() == "libcudart-09529672.so.12.6.77"
    assert lay_out(PROGRAM, tmp_path / "a venv", packages.parent) == launcher  # once more: replaced


def test_a_library_that_is_nowhere_is_named_with_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(perf_analyzer, "missing_libraries", lacks("libb64.so.0d"))
    with pytest.raises(PerfAnalyzerMissing, match=r"lacks libb64.so.0d \(.*apt-get install libb64-0d\)"):
        lay_out(PROGRAM, tmp_path, tmp_path)
    assert not (tmp_path / "bin" / "perf_analyzer").exists()
    assert list((tmp_path / "lib").iterdir()) == []
    assert "pip install nvidia-cuda-runtime-cu12" in how_to_get(["libfoo.so.1", "libcudart.so.12"])


@pytest.mark.parametrize(("machine", "libc"), [("aarch64", "glibc 2.39"), ("x86_64", "glibc 2.31"), ("x86_64", "")])
def test_a_host_that_it_is_not_for_is_told(machine: str, libc: str) -> None:
    with pytest.raises(PerfAnalyzerMissing, match=f"this host has {machine} and {libc or 'no GNU'}.*SDK container"):
        _check_host(machine, libc)
    _check_host("x86_64", "glibc 2.36")


def test_one_on_path_is_taken_without_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "perf_analyzer"
    program.write_bytes(PROGRAM)
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    monkeypatch.setattr(perf_analyzer, "download_wheel", None)
    assert find_perf_analyzer() == install() == program
    program.write_text("#!/bin/sh\necho libb64.so.0d: cannot open shared object file >&2; exit 127\n")
    with pytest.raises(PerfAnalyzerMissing, match=r"does not start: libb64.so.0d"):
        find_perf_analyzer()


def test_none_at_all_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(perf_analyzer, "_HOME", tmp_path)
    with pytest.raises(PerfAnalyzerMissing, match="frontrow bench install"):
        find_perf_analyzer()
