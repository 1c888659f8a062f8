"""perf_analyzer, NVIDIA's load generator for Triton Server: found, or set up in the environment.

    frontrow bench install        (or: python -m frontrow.benchmarks.perf_analyzer)

One on PATH is taken as it is. Else the program is taken out of a wheel of PyPI and put into this Python's environment
(`bin/perf_analyzer`, `lib/perf_analyzer-<version>/`); nothing is downloaded when it is there already. Why that wheel:
it is the newest that runs on Debian 12 and Ubuntu 22.04; those called perf-analyzer need glibc 2.38.
"""

from __future__ import annotations

import importlib.metadata
import io
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

from ..serving.doctor import parse_missing_libraries, parse_version
from ..training.wheel import WheelError, download_wheel
from .command import command

VERSION = "2.48.0"
WHEEL = f"tritonclient=={VERSION}"
WHEEL_SHA256 = "7074885798e8a711fedaf94d6dd77f310973fe2ebf29fb2837db350a43e2d6a5"
MIN_GLIBC = (2, 34)
_IN_WHEEL = f"tritonclient-{VERSION}.data/data/bin/perf_analyzer"
_HOME = Path(sys.prefix)
# Libraries that few hosts have, and where packages of Python carry a copy: globs below site-packages.
_COPIES = {
    "libb64.so.0d": ("nvidia_pytriton.libs/libb64-*.so.0d",),
    "libcudart.so.12": ("nvidia_pytriton.libs/libcudart-*.so.12*", "nvidia/cuda_runtime/lib/libcudart.so.12"),
}
_DEBIAN = {
    "libb64.so.0d": "libb64-0d", "libssl.so.3": "libssl3", "libcrypto.so.3": "libssl3", "libz.so.1": "zlib1g",
    "libstdc++.so.6": "libstdc++6",
}  # fmt: skip


class PerfAnalyzerMissing(RuntimeError):
    """No usable perf_analyzer; the message says what to install."""


def find_perf_analyzer() -> Path:
    """The program on PATH, else the one of this environment. Raises PerfAnalyzerMissing if none starts."""
    found = shutil.which("perf_analyzer") or shutil.which("perf_analyzer", path=str(_HOME / "bin"))
    if found is None:
        raise PerfAnalyzerMissing("no perf_analyzer on PATH or in this environment: frontrow bench install")
    started = subprocess.run([found, "--version"], capture_output=True, text=True)
    if started.returncode:
        raise PerfAnalyzerMissing(f"{found} does not start: {(started.stderr or started.stdout).strip()}")
    return Path(found)


def install() -> Path:
    """`find_perf_analyzer`, set up in this environment where there is none. Raises PerfAnalyzerMissing."""
    try:
        return find_perf_analyzer()
    except PerfAnalyzerMissing:
        _check_host(platform.machine(), os.confstr("CS_GNU_LIBC_VERSION") or "")
    try:
        with zipfile.ZipFile(io.BytesIO(download_wheel(WHEEL, WHEEL_SHA256))) as archive:
            program = archive.read(_IN_WHEEL)
    except WheelError as error:
        raise PerfAnalyzerMissing(str(error)) from error
    return lay_out(program, _HOME, site_packages())


def _check_host(machine: str, libc: str) -> None:
    name, _, version = libc.partition(" ")
    if machine != "x86_64" or name != "glibc" or parse_version(version) < MIN_GLIBC:
        raise PerfAnalyzerMissing(
            f"the perf_analyzer of {WHEEL} is for x86_64 and glibc {'.'.join(map(str, MIN_GLIBC))} or newer, this host "
            f"has {machine} and {libc or 'no GNU C library'}; use NVIDIA's Triton SDK container"
        )


def site_packages() -> Path:
    """site-packages of this environment: where numpy lies."""
    return Path(str(importlib.metadata.distribution("numpy").locate_file("")))


def lay_out(program: bytes, home: Path, packages: Path) -> Path:
    """Puts the program and the libraries that the host lacks into `home`, and returns `home`/bin/perf_analyzer, which
    starts it with them. Raises PerfAnalyzerMissing naming the packages of libraries that are nowhere."""
    folder, launcher = home / "lib" / f"perf_analyzer-{VERSION}", home / "bin" / "perf_analyzer"
    folder.parent.mkdir(parents=True, exist_ok=True)
    launcher.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        draft = Path(scratch) / "draft"
        draft.mkdir()
        (draft / "perf_analyzer").write_bytes(program)
        (draft / "perf_analyzer").chmod(0o755)
        for library in missing_libraries(draft):
            copies = (file for place in _COPIES.get(library, ()) for file in sorted(packages.glob(place)))
            if copy := next(copies, None):
                shutil.copyfile(copy, draft / library)
        if lacking := missing_libraries(draft):
            raise PerfAnalyzerMissing(f"perf_analyzer lacks {how_to_get(lacking)}")
        shutil.rmtree(folder, ignore_errors=True)
        draft.rename(folder)
    libraries = f'LD_LIBRARY_PATH="{folder}${{LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}}"'
    launcher.write_text(f'#!/bin/sh\n{libraries} exec "{folder}/perf_analyzer" "$@"\n', "utf-8")
    launcher.chmod(0o755)
    return launcher


def missing_libraries(folder: Path) -> list[str]:
    """What the program in a folder does not find, in the folder or on the host."""
    path = ":".join(filter(None, (str(folder), os.environ.get("LD_LIBRARY_PATH"))))
    command = ["ldd", str(folder / "perf_analyzer")]
    ldd = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"LD_LIBRARY_PATH": path})
    return parse_missing_libraries(ldd.stdout)


def how_to_get(libraries: Sequence[str]) -> str:
    """Each library with what brings it, as `frontrow doctor` says it."""
    fixes = {name: f"Debian and Ubuntu: apt-get install {package}" for name, package in _DEBIAN.items()}
    fixes["libcudart.so.12"] = "pip install nvidia-cuda-runtime-cu12"
    return "; ".join(f"{name} ({fixes[name]})" if name in fixes else name for name in libraries)


if __name__ == "__main__":
    with command("frontrow bench install", __doc__) as parser:
        parser.parse_args()
        print(install())
