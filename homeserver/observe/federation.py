"""Metrics of incoming federation, the member list and the state audit
(`federation/rooms/state_audit.py`). Label values are fixed words, never text from other servers."""

from prometheus_client import CollectorRegistry, Counter, Gauge

_FORMER_RESULTS = {"expired": "given_up"}
"""The values of the label `result` that the label `verdict` has under another name."""


class FederationMetrics:
    """Counts received events by result, and waiting events."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._pdus = Counter(
            "mahalla_federation_pdus",
            "Events from other servers, by result. The label verdict is the former name of the "
            "label result, and will be removed in the next release",
            labelnames=("result", "verdict"),
            registry=registry,
        )
        self._waiting = Gauge(
            "mahalla_federation_inbox_events",
            "Events from remote servers that wait for missing events",
            registry=registry,
        )

        self._partial = Gauge(
            "mahalla_federation_partial_rooms",
            "Rooms that were joined with partial state, which is still being completed",
            registry=registry,
        )

    def pdu_received(self, result: str) -> None:
        """Count an event with its result."""
        self._pdus.labels(result, _FORMER_RESULTS.get(result, result)).inc()

    def inbox_changed(self, length: int) -> None:
        """Set the number of events in the inbox."""
        self._waiting.set(length)

    def partial_rooms_changed(self, count: int) -> None:
        """Set the number of partial-state rooms."""
        self._partial.set(count)


class MemberListMetrics:
    """Counts refreshes of the federation member list, and exposes its expiry."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._refreshes = Counter(
            "mahalla_federation_member_list_refreshes",
            "Checks for a newer member list, by result: good or refused",
            labelnames=("result",),
            registry=registry,
        )
        self._expires = Gauge(
            "mahalla_federation_member_list_expires_seconds",
            "Time when the current member list expires (seconds since 1970); 0 without one",
            registry=registry,
        )

    def list_refreshed(self, expires: int | None, *, is_accepted: bool) -> None:
        """Count a refresh of the list."""
        self._refreshes.labels("good" if is_accepted else "refused").inc()
        self._expires.set(expires or 0)


class AuditMetrics:
    """Counts recomputed room states, and those that differ from the stored ones."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._checked = Counter(
            "mahalla_room_states_checked",
            "States of federated rooms that were recomputed and compared",
            registry=registry,
        )
        self._differing = Counter(
            "mahalla_room_states_differing",
            "Recomputed states that differ from the stored ones; must stay 0. The log names rooms, "
            "events and entries",
            registry=registry,
        )

    def states_checked(self, count: int) -> None:
        """Count compared states."""
        self._checked.inc(count)

    def state_differs(self) -> None:
        """Count a state that differs from the stored one."""
        self._differing.inc()
