"""What this host has and lacks for serving: one `Check` per requirement, for the command line to print.

The `judge_*` functions decide from values alone; `run_checks` collects the values.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from .triton_server import ServerInstall, find_libpython, find_tritonserver, has_nvidia_gpu

MIN_PYTHON = (3, 11)
MIN_GLIBC = (2, 35)  # what the nvidia-pytriton wheel was built against
MIN_SHM_BYTES = 64 << 20  # Docker's default; each model instance starts with 1 MB and grows with its batches
GOOD_SHM_BYTES = 256 << 20

Status = Literal["ok", "warning", "missing", "wrong"]  # wrong: there, in a version that does not do


@dataclass(frozen=True)
class Check:
    """One requirement: what was found, and when that is not `ok`, what to do about it."""

    name: str
    status: Status
    found: str
    fix: str = ""


def run_checks() -> list[Check]:
    """Looks at this host, in about a second. Never raises: a check that fails is a warning that says why."""
    python = sys.version_info.major, sys.version_info.minor
    checks: dict[str, Callable[[], Check]] = {
        "python": lambda: judge_python(python),
        "libpython": lambda: judge_libpython(find_libpython(), python),
        "glibc": lambda: judge_glibc(os.confstr("CS_GNU_LIBC_VERSION")),
        "tritonserver": _check_tritonserver,
        "numpy": lambda: judge_numpy(_version("numpy"), from_wheel=not shutil.which("tritonserver")),
        "torch": lambda: judge_torch(_torch_version_file(), has_gpu=has_nvidia_gpu()),
        "faiss": lambda: judge_package("faiss", _version("faiss-cpu", "faiss-gpu-cu12"), "serve"),
        "tritonclient": lambda: judge_package("tritonclient", _version("tritonclient"), "client"),
        "shared memory": lambda: judge_shared_memory(shutil.disk_usage("/dev/shm").free),
        "gpu": _check_gpu,
        "perf_analyzer": lambda: judge_perf_analyzer(shutil.which("perf_analyzer", path=_search_path())),
    }
    return [_guarded(name, check) for name, check in checks.items()]


def _guarded(name: str, check: Callable[[], Check]) -> Check:
    try:
        return check()
    except Exception as error:  # a doctor that crashes on a strange host helps nobody
        return Check(name, "warning", f"could not be checked: {type(error).__name__}: {error}")


# --- Python and its packages ---


def judge_python(version: tuple[int, int]) -> Check:
    found = ".".join(map(str, version))
    if version < MIN_PYTHON:
        return Check("python", "wrong", found, "use Python 3.11 or newer")
    return Check("python", "ok", found)


def judge_libpython(library: Path | None, version: tuple[int, int]) -> Check:
    """The Python backend runs models in a program of its own, which loads Python as a shared library."""
    if library is not None:
        return Check("libpython", "ok", str(library))
    python = ".".join(map(str, version))
    return Check(
        "libpython",
        "missing",
        f"no libpython{python}.so.1.0",
        f"Debian and Ubuntu: apt-get install libpython{python} (or python3-dev); Fedora: python3-libs; "
        f'pyenv: PYTHON_CONFIGURE_OPTS="--enable-shared" pyenv install {python}',
    )


def judge_numpy(version: str | None, *, from_wheel: bool) -> Check:
    """The wheel's stub was built for numpy 1: with numpy 2 it sends arrays of the right shape and 0 bytes."""
    check = judge_package("numpy", version, "serve")
    if version and from_wheel and parse_version(version) >= (2,):
        return Check("numpy", "wrong", version, "pip install 'numpy<2': with numpy 2 the server's outputs arrive empty")
    return check


def judge_torch(version_file: str | None, *, has_gpu: bool) -> Check:
    """From the text of torch/version.py, because importing torch takes seconds."""
    if version_file is None:
        return judge_package("torch", None, "serve")
    version, cuda = parse_torch_version(version_file)
    found = f"{version} ({f'CUDA {cuda}' if cuda else 'CPU'} build)"
    if has_gpu and not cuda:
        return Check("torch", "warning", found, "this host has a GPU: install a CUDA build of torch to use it")
    return Check("torch", "ok", found)


def judge_package(name: str, version: str | None, extra: str) -> Check:
    if version is None:
        return Check(
            name, "missing", "not installed", f"it is in frontrow[{extra}]; in the clone: pip install '.[{extra}]'"
        )
    return Check(name, "ok", version)


def parse_version(text: str) -> tuple[int, ...]:
    """The leading numbers: (2, 13, 0) of "2.13.0+cpu"."""
    numbers = re.match(r"\d+(\.\d+)*", text)
    return tuple(map(int, numbers[0].split("."))) if numbers else ()


def parse_torch_version(version_file: str) -> tuple[str, str | None]:
    """Version and CUDA version of a torch build."""

    def value(name: str) -> str | None:
        found = re.search(rf"^{name}\b[^=\n]*=\s*'([^']+)'", version_file, re.MULTILINE)
        return found[1] if found else None

    return value("__version__") or "unknown version", value("cuda")


def _version(*distributions: str) -> str | None:
    for name in distributions:
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return None


def _torch_version_file() -> str | None:
    spec = importlib.util.find_spec("torch")
    return Path(spec.origin).with_name("version.py").read_text() if spec and spec.origin else None


# --- The server ---


def judge_glibc(version: str | None) -> Check:
    """`version` as the C library gives it: "glibc 2.36"."""
    name, _, number = (version or "").partition(" ")
    if name == "glibc" and parse_version(number) >= MIN_GLIBC:
        return Check("glibc", "ok", number)
    wanted = ".".join(map(str, MIN_GLIBC))
    fix = f"the nvidia-pytriton wheel needs glibc {wanted} (Ubuntu 22.04, Debian 12); else use the Docker image"
    return Check("glibc", "wrong" if name == "glibc" else "missing", version or "no GNU C library", fix)


def judge_tritonserver(install: ServerInstall, missing: Mapping[str, list[str]]) -> Check:
    """`missing` holds, for each file of the server, the shared libraries it does not find."""
    found = f"{install.executable} (from {install.source})"
    lacking = [f"{file} lacks {', '.join(libraries)}" for file, libraries in missing.items() if libraries]
    if lacking:
        fix = "install the packages that hold these libraries, or use the Docker image"
        return Check("tritonserver", "missing", f"{found}; {'; '.join(lacking)}", fix)
    return Check("tritonserver", "ok", found)


def parse_missing_libraries(ldd_output: str) -> list[str]:
    """Names of the libraries that ldd reports as "not found", each once."""
    return list(dict.fromkeys(re.findall(r"^\s*(\S+) => not found", ldd_output, re.MULTILINE)))


def _check_tritonserver() -> Check:
    try:
        install = find_tritonserver()
    except RuntimeError as error:
        return Check("tritonserver", "missing", "none", str(error))
    backend = install.backend_directory / "python"
    files = (install.executable, backend / "libtriton_python.so", backend / "triton_python_backend_stub")
    return judge_tritonserver(install, {file.name: _missing_libraries(file, install) for file in files})


def _missing_libraries(file: Path, install: ServerInstall) -> list[str]:
    ldd = subprocess.run(["ldd", str(file)], capture_output=True, text=True, env=os.environ | install.env, timeout=10)
    return parse_missing_libraries(ldd.stdout)


# --- The host ---


def judge_shared_memory(free_bytes: int) -> Check:
    """Requests and answers pass between tritonserver and each model instance through /dev/shm."""
    found = f"{free_bytes / (1 << 20):,.0f} MB free in /dev/shm"
    fix = "64 MB are needed and 256 MB are better: docker run --shm-size=256m, or an emptyDir in memory"
    if free_bytes < MIN_SHM_BYTES:
        return Check("shared memory", "missing", found, fix)
    if free_bytes < GOOD_SHM_BYTES:
        return Check("shared memory", "warning", found, fix)
    return Check("shared memory", "ok", found)


def judge_gpu(nvidia_smi: str | None) -> Check:
    """From what nvidia-smi prints for each GPU, "name, driver"; None when there is no such program.

    Serving without a GPU is supported, so having none is `ok`.
    """
    if nvidia_smi is None:
        return Check("gpu", "ok", "none; serving on the CPU")
    gpus = [line.strip() for line in nvidia_smi.splitlines() if "," in line]
    if not gpus:
        fix = "nvidia-smi sees no GPU: check the driver, or in a container, run it with --gpus all"
        return Check("gpu", "warning", nvidia_smi.strip() or "no answer from nvidia-smi", fix)
    names = [", driver ".join(part.strip() for part in gpu.rsplit(",", 1)) for gpu in gpus]
    return Check("gpu", "ok", "; ".join(names))


def judge_perf_analyzer(path: str | None) -> Check:
    """Measures latency and throughput; serving works without it."""
    if path:
        return Check("perf_analyzer", "ok", path)
    fix = "only for load tests: frontrow bench install, or NVIDIA's Triton SDK container"
    return Check("perf_analyzer", "warning", "not on PATH", fix)


def _check_gpu() -> Check:
    smi = shutil.which("nvidia-smi")
    if smi is None:
        return judge_gpu(None)
    query = [smi, "--query-gpu=name,driver_version", "--format=csv,noheader"]
    answer = subprocess.run(query, capture_output=True, text=True, timeout=10)
    return judge_gpu(answer.stdout)


def _search_path() -> str:
    return f"{os.environ.get('PATH', os.defpath)}:{Path(sys.executable).parent}"
