"""Tells a person at a terminal how far a copy is: table, rows, rate, and how long it may still
take."""

from collections.abc import Callable

from storage.maintenance.copy import Step

SECONDS_BETWEEN = 1.0


class ProgressLines:
    """Writes a line for each table that is done (empty ones are not told), and one a second in
    between."""

    def __init__(self, write: Callable[[str], object], clock: Callable[[], float]) -> None:
        """`clock` in seconds, from anywhere."""
        self._write = write
        self._clock = clock
        self._began = clock()
        self._told = self._began

    def tell(self, step: Step) -> None:
        now = self._clock()
        done = 0 < step.rows == step.rows_of_table
        if not done and now - self._told < SECONDS_BETWEEN:
            return
        self._told = now
        rate = step.all_rows / max(now - self._began, 0.001)
        left = (step.all_rows_to_do - step.all_rows) / rate if rate else 0.0
        self._write(
            f"{step.doing} {step.table}: {step.rows:,} of {step.rows_of_table:,} rows; "
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
