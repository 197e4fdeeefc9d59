"""Prints the progress of a copy: table, rows, rate, and the remaining time."""

from collections.abc import Callable

from storage.maintenance.copy import CopyProgress

REPORT_INTERVAL = 1.0


class ProgressLines:
    """Writes a line for each finished table, except empty ones, and one each second during a
    table."""

    def __init__(self, *, write: Callable[[str], object], clock: Callable[[], float]) -> None:
        """`clock` returns seconds, from any starting point."""
        self._write = write
        self._clock = clock
        self._began = clock()
        self._reported_at = self._began

    def report(self, step: CopyProgress) -> None:
        now = self._clock()
        done = 0 < step.rows == step.rows_of_table
        if not done and now - self._reported_at < REPORT_INTERVAL:
            return
        self._reported_at = now
        rate = step.rows_done / max(now - self._began, 0.001)
        left = (step.rows_total - step.rows_done) / rate if rate else 0.0
        self._write(
            f"{step.phase} {step.table}: {step.rows:,} of {step.rows_of_table:,} rows; "
            f"{rate:,.0f} rows/s in all, about {_duration(left)} left\n"
        )


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return (
        f"{hours} h {minutes} min"
        if hours
        else f"{minutes} min {rest} s"
        if minutes
        else f"{rest} s"
    )
