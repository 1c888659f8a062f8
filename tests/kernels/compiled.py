"""Compiles what the ops launch for GPUs that need not be there, and prints what the compiler made of it as JSON.

python compiled.py OP [ARCHITECTURE ...]: OP is a key of CASES in cases.py; architectures default to 80 90 100.
The ops' own launchers run on CPU tensors; each launch compiles the kernel that a GPU would get for these very
arguments, and runs nothing. Must be a process of its own: Triton's interpreter (TRITON_INTERPRET) and its compiler
exclude each other. One JSON object: {case: {architecture: [{kernel, registers, stack, shared, …}]}}.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

os.environ.pop("TRITON_INTERPRET", None)
os.environ.setdefault("TRITON_CACHE_DIR", tempfile.mkdtemp())

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction

INSTRUCTIONS = {
    "wgmma": r"wgmma\.mma_async",
    "tcgen05": r"tcgen05\.mma",
    "mma": r"\bmma\.sync",
    "async copies": r"cp\.async\.c[ag]\.shared",
    "16-byte loads": r"ld\.global[.\w:]*\.v4\.b32|ld\.global[.\w:]*\.v2\.b64",
    "2-byte loads": r"ld\.global[.\w:]*\.b16",
    "1-byte loads": r"ld\.global[.\w:]*\.b8",
}


class NoGpu:
    """What Triton asks its driver while it compiles, answered for a GPU that is not there."""

    def __init__(self, architecture: int) -> None:
        self.target = GPUTarget("cuda", architecture, 32)

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, _device: int = 0) -> int:
        return 0

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")


def compiled(launch: Any, architecture: int) -> list[dict[str, Any]]:
    """What the kernels that `launch` launches became, one entry per launch."""
    found: list[dict[str, Any]] = []
    run = JITFunction.run

    def compile_only(self: JITFunction, *args: Any, **options: Any) -> Any:
        self.device_caches.clear()
        options["warmup"] = True
        kernel = run(self, *args, **options)
        found.append({"kernel": self.__name__, **resources(kernel)})
        return kernel

    triton.runtime.driver.set_active(NoGpu(architecture))
    JITFunction.run = compile_only
    try:
        launch()
    finally:
        JITFunction.run = run
    return found


def resources(kernel: Any) -> dict[str, Any]:
    """Registers and stack bytes per thread, shared memory bytes per program, and counts of instructions in the PTX."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        usage = subprocess.run([tool, "--dump-resource-usage", file.name], capture_output=True, text=True, check=True)
    use = re.search(r"REG:(\d+) STACK:(\d+)", usage.stdout)
    assert use, usage.stdout
    counts = {name: len(re.findall(pattern, kernel.asm["ptx"])) for name, pattern in INSTRUCTIONS.items()}
    return {
        "registers": int(use[1]),
        "stack": int(use[2]),
        "shared": kernel.metadata.shared,
        "warps": kernel.metadata.num_warps,
        **{name: count for name, count in counts.items() if count},
    }


if __name__ == "__main__":
    from cases import CASES

    op, *architectures = sys.argv[1:]
    report = {
        case: {a: compiled(launch, int(a)) for a in architectures or ["80", "90", "100"]}
        for case, launch in CASES[op].items()
    }
    print(json.dumps({"triton": triton.__version__, "cases": report}))
