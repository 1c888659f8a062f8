"""A program that becomes tritonserver and leaves a guard behind, which clears up after it.

Run as a file of its own, so it imports the standard library only.
"""

from __future__ import annotations

import os
import select
import shutil
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path

DRAIN_SECONDS = 15  # for requests in flight; tritonserver's default outlasts stop()


def run_guarded(name: str, scratch: str, command: list[str]) -> None:
    """This file as a program, as `TritonServer.start` runs it: forks the guard, then becomes the server.

    A launcher that is killed stops nothing, so somebody else must. PR_SET_PDEATHSIG is no help: it fires when
    the *thread* that started the server ends, and reaches neither the stubs nor their shared memory.
    The guard waits for end-of-file on a socket whose other end the launcher holds, which comes exactly when
    the launcher ends or lets go. Forking here, in a process of one thread, leaves no moment without a guard.
    """
    server = os.getpid()
    if os.fork() == 0:
        _guard(server, name, scratch)
        return
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.execv(command[0], command)


def _guard(server: int, name: str, scratch: str) -> None:
    os.setsid()  # out of the group that it may have to kill
    # The server is the guard's parent, so another parent means that the server has ended.
    while os.getppid() == server and not select.select([0], [], [], 0.5)[0]:
        pass
    with suppress(ProcessLookupError):
        if os.getppid() == server:
            os.kill(server, signal.SIGTERM)
        deadline = time.monotonic() + DRAIN_SECONDS + 5
        while os.getppid() == server and time.monotonic() < deadline:
            time.sleep(0.05)
        os.killpg(server, signal.SIGKILL)
    for region in Path("/dev/shm").glob(f"{name}*"):
        region.unlink(missing_ok=True)
    if scratch:
        shutil.rmtree(scratch, ignore_errors=True)


if __name__ == "__main__":
    run_guarded(sys.argv[1], sys.argv[2], sys.argv[3:])
