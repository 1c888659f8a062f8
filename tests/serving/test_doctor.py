"""The doctor's verdicts, and one look at this host."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from frontrow.serving import doctor
from frontrow.serving.doctor import Check
from frontrow.serving.triton_server import ServerInstall, ServerNotFound

NAMES = [
    "python",
    "libpython",
    "glibc",
    "tritonserver",
    "numpy",
    "torch",
    "faiss",
    "tritonclient",
    "shared memory",
    "gpu",
    "perf_analyzer",
]
LDD = """
	linux-vdso.so.1 (0x00007ffd8a9f2000)
	libcudart.so.12 => not found
	libz.so.1 => /lib/x86_64-linux-gnu/libz.so.1 (0x00007f1b2c000000)
	libpython3.11.so.1.0 => not found
	libcudart.so.12 => not found
"""
CPU_TORCH = "__version__ = '2.13.0+cpu'\ndebug = False\ncuda: Optional[str] = None\ngit_version = 'a'\n"
CUDA_TORCH = "__version__ = '2.13.0'\ndebug = False\ncuda: Optional[str] = '13.0'\ngit_version = 'a'\n"


def test_this_host_is_checked_quickly_and_completely() -> None:
    began = time.monotonic()
    checks = doctor.run_checks()
    assert time.monotonic() - began < 10
    assert [check.name for check in checks] == NAMES
    assert all(check.found for check in checks)
    # What is not ok says what to do, what is ok asks for nothing.
    assert all(bool(check.fix) == (check.status != "ok") for check in checks)
    assert not [check for check in checks if "could not be checked" in check.found]
    assert checks[0].status == "ok"  # the project does not install on an older Python


def test_a_check_that_fails_is_a_warning_and_the_others_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise PermissionError("no")

    monkeypatch.setattr(doctor.shutil, "disk_usage", broken)
    checks = doctor.run_checks()
    assert [check.name for check in checks] == NAMES
    failed = checks[NAMES.index("shared memory")]
    assert (failed.status, failed.found) == ("warning", "could not be checked: PermissionError: no")


def test_no_server_says_how_to_get_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing() -> ServerInstall:
        raise ServerNotFound("pip install 'frontrow[serve]'")

    monkeypatch.setattr(doctor, "find_tritonserver", nothing)
    check = doctor.run_checks()[NAMES.index("tritonserver")]
    assert check == Check("tritonserver", "missing", "none", "pip install 'frontrow[serve]'")


@pytest.mark.parametrize(
    ("check", "status", "said"),
    [
        (doctor.judge_python((3, 10)), "wrong", "3.11"),
        (doctor.judge_python((3, 11)), "ok", "3.11"),
        (doctor.judge_python((4, 0)), "ok", "4.0"),
        (
            doctor.judge_libpython(Path("/lib/libpython3.12.so.1.0"), (3, 12)),
            "ok",
            "/lib/libpython3.12.so.1.0",
        ),
        (doctor.judge_libpython(None, (3, 12)), "missing", "libpython3.12"),
        (doctor.judge_libpython(None, (3, 12)), "missing", "--enable-shared"),
        (doctor.judge_numpy("1.26.4", from_wheel=True), "ok", "1.26.4"),
        (doctor.judge_numpy("2.0.0", from_wheel=True), "wrong", "numpy<2"),
        (doctor.judge_numpy("2.3.1", from_wheel=False), "ok", "2.3.1"),
        (doctor.judge_numpy(None, from_wheel=True), "missing", "frontrow[serve]"),
        (doctor.judge_torch(CPU_TORCH, has_gpu=False), "ok", "2.13.0+cpu (CPU build)"),
        (doctor.judge_torch(CUDA_TORCH, has_gpu=True), "ok", "2.13.0 (CUDA 13.0 build)"),
        (doctor.judge_torch(CUDA_TORCH, has_gpu=False), "ok", "CUDA 13.0"),
        (doctor.judge_torch(CPU_TORCH, has_gpu=True), "warning", "CUDA build"),
        (doctor.judge_torch(None, has_gpu=False), "missing", "frontrow[serve]"),
        (doctor.judge_package("faiss", None, "serve"), "missing", "frontrow[serve]"),
        (doctor.judge_package("tritonclient", "2.60.0", "client"), "ok", "2.60.0"),
        (doctor.judge_glibc("glibc 2.34"), "wrong", "2.35"),
        (doctor.judge_glibc("glibc 2.35"), "ok", "2.35"),
        (doctor.judge_glibc("glibc 2.100"), "ok", "2.100"),
        (doctor.judge_glibc(None), "missing", "no GNU C library"),
        (doctor.judge_shared_memory(63 << 20), "missing", "63 MB"),
        (doctor.judge_shared_memory(64 << 20), "warning", "--shm-size"),
        (doctor.judge_shared_memory(256 << 20), "ok", "256 MB"),
        (doctor.judge_gpu(None), "ok", "none"),
        (doctor.judge_gpu("NVIDIA H100, 570.1\nNVIDIA H100, 570.1\n"), "ok", "NVIDIA H100, driver 570.1; NV"),
        (doctor.judge_gpu("No devices were found\n"), "warning", "--gpus all"),
        (doctor.judge_gpu(""), "warning", "no answer"),
        (doctor.judge_perf_analyzer("/usr/bin/perf_analyzer"), "ok", "/usr/bin/perf_analyzer"),
        (doctor.judge_perf_analyzer(None), "warning", "frontrow bench install"),
    ],
    ids=lambda value: f"{value.name}-{value.found}" if isinstance(value, Check) else "",
)
def test_verdict(check: Check, status: str, said: str) -> None:
    assert check.status == status
    assert said in f"{check.found} {check.fix}"
    assert bool(check.fix) == (status != "ok")


@pytest.mark.parametrize(
    ("missing", "status", "found"),
    [
        ({"tritonserver": [], "stub": []}, "ok", "/opt/bin/tritonserver (from PATH)"),
        (
            {"tritonserver": ["libdcgm.so.4"], "stub": ["libpython3.11.so.1.0", "libz.so.1"]},
            "missing",
            "/opt/bin/tritonserver (from PATH); tritonserver lacks libdcgm.so.4; "
            "stub lacks libpython3.11.so.1.0, libz.so.1",
        ),
    ],
)
def test_a_server_without_its_libraries_is_not_ok(missing: dict[str, list[str]], status: str, found: str) -> None:
    install = ServerInstall(Path("/opt/bin/tritonserver"), Path("/opt/backends"), {}, "PATH")
    check = doctor.judge_tritonserver(install, missing)
    assert (check.status, check.found) == (status, found)


def test_parse_missing_libraries() -> None:
    assert doctor.parse_missing_libraries(LDD) == ["libcudart.so.12", "libpython3.11.so.1.0"]
    assert doctor.parse_missing_libraries("\tstatically linked\n") == []


@pytest.mark.parametrize(
    ("text", "numbers"), [("2.13.0+cpu", (2, 13, 0)), ("2.0.0rc1", (2, 0, 0)), ("2.36", (2, 36)), ("git", ())]
)
def test_parse_version(text: str, numbers: tuple[int, ...]) -> None:
    assert doctor.parse_version(text) == numbers


def test_the_installed_torch_is_read_without_importing_it() -> None:
    torch = pytest.importorskip("torch")
    text = (Path(torch.__file__).parent / "version.py").read_text()
    assert doctor.parse_torch_version(text) == (str(torch.__version__), torch.version.cuda)
