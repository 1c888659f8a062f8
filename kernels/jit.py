"""The Triton language where it is installed. A host without GPU needs none: its paths are plain torch.

`jit` marks device functions; without Triton it leaves them as they are, and nothing calls them.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext, suppress
from functools import wraps
from typing import TYPE_CHECKING, Any, TypeVar, cast

import torch

F = TypeVar("F", bound=Callable[..., Any])

triton: Any = None
tl: Any = None
with suppress(ImportError):
    import triton
    import triton.language as tl
if TYPE_CHECKING:
    constexpr = Any
else:
    constexpr = getattr(tl, "constexpr", None)


def jit(*runtime: str) -> Callable[[Any], Any]:
    """triton.jit whose arguments of the given names are plain run-time numbers: no variant is compiled for 1 or for
    multiples of 16. Without Triton the function stays as it is."""
    return lambda function: function if triton is None else triton.jit(do_not_specialize=runtime)(function)


def architecture() -> int:
    """What kernels are compiled for: 80, 90, 100, …; 90 where Triton's interpreter runs them without a GPU."""
    with suppress(RuntimeError):
        return int(triton.runtime.driver.active.get_current_target().arch)
    return 90


def shared_memory() -> int:
    """Bytes of it that a program may have."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_properties(torch.cuda.current_device()).shared_memory_per_block_optin
    return {80: 163, 86: 99, 89: 99, 120: 99}.get(architecture(), 227) << 10


def ceil_div(a: int, b: int) -> int:
    return -(-a // b)


def next_power_of_2(n: int) -> int:
    """The smallest power of two that is at least n; 1 for n < 2."""
    return 1 << max(n - 1, 0).bit_length()


def on_its_device(function: F) -> F:
    """A function of tensors run on the device of the first, since Triton launches on the current one, and without
    autocast, which would round what is float32 here for a reason."""

    @wraps(function)
    def run(first: torch.Tensor, *arguments: Any, **more: Any) -> Any:
        kind = first.device.type
        device = torch.cuda.device(first.device) if kind == "cuda" else nullcontext()
        exact = torch.autocast(kind, enabled=False) if torch.is_autocast_enabled(kind) else nullcontext()
        with device, exact:
            return function(first, *arguments, **more)

    return cast(F, run)


def contiguous(tensor: Any) -> Any:
    """Kernels read arrays as they lie in memory; None stays None."""
    return None if tensor is None else tensor.contiguous()


def one_device(*tensors: torch.Tensor | None) -> None:
    """Raises ValueError if not all lie on the first one's."""
    devices = [t.device for t in tensors if t is not None]
    for device in devices:
        if device != devices[0]:
            raise ValueError(f"there are tensors on {devices[0]} and on {device}; move them to one device")


__all__ = [
    "architecture",
    "ceil_div",
    "constexpr",
    "contiguous",
    "jit",
    "next_power_of_2",
    "on_its_device",
    "one_device",
    "shared_memory",
    "tl",
    "triton",
]
