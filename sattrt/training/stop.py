"""A signal asks a run to stop after the step in hand.

with StopRequest() as stop:
    while not stop.asked: ...
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any, Self


class StopRequest:
    """While it is open, SIGTERM, a terminal that goes away and the first Ctrl-C set `asked` instead of ending the process; a second Ctrl-C ends it.

    Signals can be caught in the main thread only; elsewhere, and for a signal that is switched off (nohup), nothing changes. heard: called with
    what is to be said of it as a signal comes.
    """

    def __init__(self, heard: Callable[[str], object] = lambda said: None) -> None:
        self.asked, self._heard = False, heard
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
                if signal.getsignal(number) is not signal.SIG_IGN:
                    self._before[number] = signal.signal(number, self._ask)
        return self

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self.asked = True
        signal.signal(signal.SIGINT, self._before.get(signal.SIGINT, signal.SIG_IGN))
        # whoever reads it may have been stopped by the same Ctrl-C, and the checkpoint matters more
        with contextlib.suppress(BaseException):
            self._heard("Stopping after this step, with a checkpoint; press Ctrl-C to stop at once.")

    def close(self) -> None:
        """From here on the signals do what they did before."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()

    def __exit__(self, *_: object) -> None:
        self.close()
