"""Exports metrics under their former names too, for one release, so that dashboards keep working.

Remove a former name in the release after the one that introduced the current name.
"""

from collections.abc import Iterator, Mapping

from prometheus_client import CollectorRegistry
from prometheus_client.core import Metric
from prometheus_client.registry import Collector


class FormerNames(Collector):
    """Exports some metrics of a collector under a second name."""

    def __init__(
        self,
        *,
        registry: CollectorRegistry,
        collector: Collector,
        names: Mapping[str, str],
        values: Mapping[str, str] | None = None,
    ) -> None:
        """`names`: the current name of each metric with the former one, without `_total`. `values`:
        the current label values that changed with the name, with the former ones."""
        self._collector = collector
        self._names = names
        self._values = values or {}
        registry.register(self)

    def collect(self) -> Iterator[Metric]:
        """Return the metrics for Prometheus."""
        for family in self._collector.collect():
            former = self._names.get(family.name)
            if former is None:
                continue
            suffix = "_total" if family.type == "counter" else ""
            text = f"Former name of {family.name}{suffix}; removed in the next release"
            renamed = Metric(former, text, family.type)
            for sample in family.samples:
                labels = {
                    label: self._values.get(value, value) for label, value in sample.labels.items()
                }
                renamed.samples.append(
                    sample._replace(
                        name=former + sample.name.removeprefix(family.name), labels=labels
                    )
                )
            yield renamed
