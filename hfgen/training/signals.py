"""SIGTERM and Ctrl-C set a flag; the trainer looks at it between steps."""

from __future__ import annotations

import signal
import threading
from types import FrameType


class StopFlag:
    """Context manager: while it is open, SIGTERM and SIGINT are remembered instead of killing the
    process.
    """

    def __init__(self) -> None:
        self.number = 0
        self._old: dict[int, object] = {}

    def __enter__(self) -> StopFlag:
        if threading.current_thread() is threading.main_thread():  # only there may handlers be set
            for number in (signal.SIGTERM, signal.SIGINT):
                self._old[number] = signal.signal(number, self._remember)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _remember(self, number: int, frame: FrameType | None) -> None:
        self.number = number
