"""Work that may take its time, beside a server that is answering: imports nothing heavy itself."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable


def politely(work: Callable[[], None]) -> None:
    """Does work in a thread that gets what processor time others leave, and waits for it. Raises what it raises.

    A thread of its own, because nobody but root may take priority back; threads that it starts are as polite.
    """
    raised: list[BaseException] = []

    def run() -> None:
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 19)
        try:
            work()
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=run, name="loading")
    thread.start()
    thread.join()
    if raised:
        raise raised[0]
