"""Converts the configured rate limits for the limiter."""

from collections.abc import Mapping

from federation.peers.token_buckets import Rate
from homeserver.api.limits import Limit
from homeserver.config.limits import LimitOptions, RateLimit


def read_rates(limits: LimitOptions) -> Mapping[Limit, Rate]:
    """Return the rate of each configured limit. A limit is named by the path of its option."""
    rates = {}
    for limit in Limit:
        found: object = limits
        for step in limit.value.split("."):
            found = getattr(found, step, None)
        if isinstance(found, RateLimit):
            rates[limit] = Rate(found.per_second, found.burst_count)
    return rates
