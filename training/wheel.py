"""A wheel of PyPI fetched for a file that lies in it: by pip, from wherever it is told to look, and verified."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tempfile
from pathlib import Path


class WheelError(RuntimeError):
    """A wheel could not be had, or is not the one expected."""


def download_wheel(requirement: str, sha256: str) -> bytes:
    """The bytes of the wheel that pip finds for `name==version` on this host. Raises WheelError."""
    with tempfile.TemporaryDirectory() as scratch:
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", "--dest", scratch, requirement]
        done = subprocess.run(command, capture_output=True, text=True)
        wheels = list(Path(scratch).glob("*.whl"))
        if done.returncode or len(wheels) != 1:
            raise WheelError(f"pip could not download {requirement}: {done.stderr.strip()}")
        data = wheels[0].read_bytes()
    if (found := hashlib.sha256(data).hexdigest()) != sha256:
        raise WheelError(f"the {requirement} wheel has sha256 {found}, expected {sha256}; not used")
    return data
