"""The command line of a benchmark: its docstring as help; what is wrong with its input in one line, no traceback."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from ..clients.errors import FrontrowError


@contextmanager
def command(name: str, about: str | None) -> Iterator[argparse.ArgumentParser]:
    """The parser of `python -m frontrow.benchmarks.<name>`; of `frontrow bench …` where the name says so."""
    prog = name if " " in name else f"python -m frontrow.benchmarks.{name}"
    parser = argparse.ArgumentParser(prog=prog, description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    try:
        yield parser
    except (FrontrowError, OSError, ValueError) as error:
        sys.exit(f"{prog}: {error}")
    except ModuleNotFoundError as error:
        sys.exit(f"{prog}: {error.name} is not installed; in the clone: pip install '.[bench]'")


def positive(text: str) -> int:
    """An argument that counts something: an integer from 1."""
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}; give an integer from 1")
    return int(text)


def seed_of(text: str) -> int:
    """An argument that seeds random generators: an integer from 0."""
    if not text.isascii() or not text.isdigit() or int(text) >= 2**31:
        raise argparse.ArgumentTypeError(f"{text!r}; give an integer from 0 to 2**31 - 1")
    return int(text)
