"""The Triton language where it is installed. A host without GPU needs none: its paths are plain torch.

`jit` marks device functions; without Triton it leaves them as they are, and nothing calls them.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

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


def ceil_div(a: int, b: int) -> int:
    return -(-a // b)


def next_power_of_2(n: int) -> int:
    """The smallest power of two that is at least n; 1 for n < 2."""
    return 1 << max(n - 1, 0).bit_length()


__all__ = ["architecture", "ceil_div", "constexpr", "jit", "next_power_of_2", "tl", "triton"]
