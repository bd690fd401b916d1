"""A signal's handler at a chosen moment. Python looks for signals as a function of its own begins, and as one of C ends: profilers are called there, too."""

import sys
from collections.abc import Callable
from types import FrameType


class Interrupted(BaseException):
    """As KeyboardInterrupt, or the SystemExit of a handler of SIGTERM."""


def interrupt() -> None:
    """A handler that raises."""
    raise Interrupted


def handled(handler: Callable[[], object], moment: int, call: Callable[[], object]) -> bool:
    """Call the handler at that moment of a call, the first of which is 1. False where the call ends before, so that all were tried."""
    left = moment

    def look(frame: FrameType, event: str, argument: object) -> None:
        nonlocal left
        if event in ("call", "c_return"):
            left -= 1
            if not left:
                sys.setprofile(None)
                handler()

    sys.setprofile(look)
    try:
        call()
    except Interrupted:
        pass
    finally:
        sys.setprofile(None)
    return left <= 0
