"""A progress line with the time left."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable


class ProgressLine:
    """One line with the progress and the time left.

    Args:
        title: of the task.
        total: number of steps.
        stream: where to print; on a terminal the line is rewritten, elsewhere only the end is printed.
    """

    def __init__(self, title: str, total: int, stream=None):
        self.title, self.total, self.stream = title, max(total, 1), stream or sys.stdout
        self.started, self.shown, self.done = time.monotonic(), 0.0, 0

    def update(self, done: int, note: str = "") -> None:
        """Show that `done` steps are done; printed at most five times per second."""
        self.done, now = done, time.monotonic()
        if not self.stream.isatty() or (now - self.shown < 0.2 and done < self.total):
            return
        self.shown = now
        left = (now - self.started) / max(done, 1) * (self.total - done)
        text = f"  {self.title}: {done:,} of {self.total:,}{note}, {format_seconds(left)} left"
        print(f"\r{text[:110]}\033[K", end="", file=self.stream, flush=True)

    def close(self, note: str = "") -> None:
        """Replace the line by the number of steps and the time taken."""
        start = "\r\033[K" if self.stream.isatty() else ""
        seconds = time.monotonic() - self.started
        print(f"{start}  {self.title}: {self.done:,} in {format_seconds(seconds)}{note}", file=self.stream, flush=True)


def format_seconds(seconds: float) -> str:
    """Return 12 s, 3 min 05 s or 2 h 04 min."""
    seconds = round(seconds)
    if seconds < 100:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60:02d} s"
    return f"{seconds // 3600} h {seconds % 3600 // 60:02d} min"


def median_seconds(call: Callable[[], object], repeats: int = 3) -> float:
    """Return the median seconds of a call; the first one, which traces and compiles, is not counted."""
    call()
    seconds = []
    for _ in range(repeats):
        began = time.monotonic()
        call()
        seconds.append(time.monotonic() - began)
    return statistics.median(seconds)
