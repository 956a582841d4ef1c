"""Progress of a sweep: a live line on a terminal, or one plain line per finished cell in a log."""

from __future__ import annotations

import time
from threading import Lock
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn

from tfmot_ops.contract import CompatResult, Status
from tfmot_ops.sweep.report.listing import cell_line
from tfmot_ops.sweep.run.matrix import Watcher

#: Number of running cells whose names are shown beside the bar.
_NAMED = 3


class SweepProgress(Watcher):
    """Watches a sweep; use it as a context manager. Cells may start and end in any thread.

    Args:
        console: where to print; a terminal gets the live line.
        total: number of cells of the sweep.
    """

    def __init__(self, console: Console, total: int) -> None:
        self._console = console
        self._total = total
        self._lock = Lock()
        self._running: dict[str, None] = {}
        self._done = self._failed = self._cached = 0
        self._begun = time.monotonic()
        self._bar = Progress(
            SpinnerColumn(),
            BarColumn(bar_width=30),
            TextColumn("{task.completed:.0f}/{task.total:.0f} {task.description}", markup=False),
            console=console,
            transient=True,
        )
        self._task = self._bar.add_task("", total=total)

    def __enter__(self) -> Self:
        """Starts the clock, and the live line on a terminal."""
        self._begun = time.monotonic()
        if self._console.is_terminal:
            self._show()
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Removes the live line, also after Ctrl-C, as the terminal's cursor must be shown again."""
        if self._console.is_terminal:
            self._bar.stop()

    def started(self, cell: str) -> None:
        """A cell's process was started."""
        with self._lock:
            self._running[cell] = None
            self._show()

    def ended(self, result: CompatResult) -> None:
        """A cell has its result, run or found."""
        with self._lock:
            self._running.pop(result.cell, None)
            self._done += 1
            self._cached += result.cached
            failed = result.status is not Status.OK
            self._failed += failed
            self._show()
            # On a terminal only failed cells get a line, as the listing of all cells follows at the end.
            if failed or not self._console.is_terminal:
                count = f"[{self._done}/{self._total}] "
                line = cell_line(result)
                self._console.print(count, line, sep="", soft_wrap=True, highlight=False, markup=False)

    @property
    def eta_s(self) -> float | None:
        """Estimated remaining seconds; None before a cell has run. Cached cells do not count for the estimate."""
        ran = self._done - self._cached
        return (time.monotonic() - self._begun) / ran * (self._total - self._done) if ran else None

    def _show(self) -> None:
        names = list(self._running)
        more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
        running = f"{', '.join(names[:_NAMED])}{more}" if names else "none"
        eta = self.eta_s
        left = "" if eta is None else f", {_clock(eta)} left"
        self._bar.update(
            self._task,
            completed=self._done,
            description=f"done, {self._failed} failed{left}; running: {running}",
        )


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
