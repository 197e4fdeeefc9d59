"""A histogram of plain numbers, which becomes a metric when somebody asks: the client library's own
takes locks and walks its bounds, which is a tenth of a small commit."""

from bisect import bisect_left
from collections.abc import Sequence
from itertools import accumulate


class PlainHistogram:
    """Counts values by the smallest bound that they do not pass."""

    __slots__ = ("_bounds", "_counts", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self.total = 0.0
        """The sum of the values."""

    def observe(self, value: float) -> None:
        """Count a value."""
        self.total += value
        self._counts[bisect_left(self._bounds, value)] += 1

    def buckets(self) -> list[tuple[str, float]]:
        """As Prometheus has them: by each bound how many values do not pass it."""
        bounds = (*map(str, self._bounds), "+Inf")
        return [
            (bound, float(count))
            for bound, count in zip(bounds, accumulate(self._counts), strict=True)
        ]
