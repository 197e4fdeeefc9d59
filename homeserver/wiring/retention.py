"""Wires the permanent deletion of messages: by age, by an administrator's purge, in forgotten
rooms."""

from collections.abc import Callable, Sequence

from federation.rooms.history.purging import MessagePurging
from homeserver.cluster.jobs import Job
from homeserver.config.retention import PurgeJobOptions
from homeserver.observe.metrics import RetentionMetrics
from homeserver.services.retention.configuration import RetentionConfiguration
from homeserver.services.retention.expiry import MessageExpiry
from homeserver.services.retention.history_purges import ForgottenRoomPurges, HistoryPurges
from homeserver.services.retention.purge_log import PurgeLog
from homeserver.services.retention.trusted_clock import TrustedClock
from homeserver.wiring.accounts import AccountParts
from homeserver.wiring.foundation import Foundation
from homeserver.wiring.room_data import RoomDataParts
from homeserver.wiring.room_history import RoomHistoryParts
from storage.cluster.clock_checks import ClockCheckStore
from storage.retention.history_purges import HistoryPurgeStore
from storage.retention.history_refetch import HistoryRefetchStore
from storage.retention.purging import PurgingStore
from storage.retention.room_retention import RoomRetentionStore
from storage.search.search import MERGE_JOB, SearchStore

DEFAULT_INTERVAL: float = 3600.0
"""Seconds between two runs of the job for rooms that no configured job covers."""


class RetentionParts:
    """The services for retention. Public attributes are for the router and the list of jobs."""

    def __init__(
        self,
        *,
        base: Foundation,
        accounts: AccountParts,
        rooms: RoomDataParts,
        history: RoomHistoryParts,
        monotonic: Callable[[], float],
    ) -> None:
        config, database, now_ms = base.config, base.database, base.now_ms
        lifetimes = history.retention
        messages, purges = PurgingStore(database), HistoryPurgeStore(database)
        metrics = RetentionMetrics(base.registry)
        time = TrustedClock(
            store=ClockCheckStore(database), now_ms=now_ms, monotonic=monotonic, metrics=metrics
        )
        purging = MessagePurging(
            database=database,
            store=messages,
            rooms=rooms.store,
            now_ms=now_ms,
            count_unreadable=metrics.unreadable.inc,
        )
        self.purges = HistoryPurges(
            store=purges,
            messages=messages,
            purging=purging,
            refetch=HistoryRefetchStore(database),
            rooms=rooms.store,
            events=rooms.events,
            identity=base.identity,
            secret_text=accounts.secret_text,
            now_ms=now_ms,
            metrics=metrics,
        )
        retention = config.rooms.retention
        rules = lifetimes.rules if lifetimes is not None else None
        self.offered = RetentionConfiguration(
            default_min=retention.default_policy.min_lifetime,
            default_max=None
            if rules is None or rules.default_max is None
            else rules.effective(None),
            min_lifetime=retention.allowed_lifetime_min,
            max_lifetime=retention.allowed_lifetime_max,
        )
        self.record = PurgeLog(store=messages, texts=SearchStore(database), now_ms=now_ms)
        self.services: Sequence[object] = (self.purges, self.record, self.offered)
        self.jobs = [
            Job("purge_histories", self.purges.do_step, 15.0),
            Job("delete_old_history_purges", self.purges.do_remove_old, 3600.0),
            Job(MERGE_JOB, self.record.do_clean_index, 86_400.0),
            Job("delete_old_purge_counts", self.record.do_remove_old, 3600.0),
        ]
        self.expiries: list[MessageExpiry] = []
        if lifetimes is not None:
            intervals = retention.purge_jobs or ()
            for number, job in enumerate((*intervals, None)):
                expiry = MessageExpiry(
                    lifetimes=lifetimes,
                    rooms=RoomRetentionStore(database),
                    store=messages,
                    purging=purging,
                    time=time,
                    metrics=metrics,
                    is_for=_is_for(intervals, number),
                )
                seconds = DEFAULT_INTERVAL if job is None else job.interval / 1000
                name = "purge_old_messages" if job is None else f"purge_old_messages_{number + 1}"
                self.expiries.append(expiry)
                self.jobs.append(Job(name, expiry.do_step, seconds))
        self.forgotten_rooms: ForgottenRoomPurges | None = None
        if config.rooms.forgotten_room_retention_period is not None:
            self.forgotten_rooms = ForgottenRoomPurges(
                store=purges,
                secret_text=accounts.secret_text,
                time=time,
                period_ms=config.rooms.forgotten_room_retention_period,
            )
            self.jobs.append(Job("purge_forgotten_rooms", self.forgotten_rooms.do_step, 3600.0))


def _is_for(jobs: Sequence[PurgeJobOptions], number: int) -> Callable[[int], bool]:
    """Return whether a lifetime belongs to the job with this number: the first job that names it.
    Lifetimes that no job names belong to one more job after the last."""

    def find(lifetime: int) -> bool:
        named = (at for at, job in enumerate(jobs) if _names(job, lifetime))
        return next(named, len(jobs)) == number

    return find


def _names(job: PurgeJobOptions, lifetime: int) -> bool:
    above = job.shortest_max_lifetime is None or lifetime > job.shortest_max_lifetime
    return above and (job.longest_max_lifetime is None or lifetime <= job.longest_max_lifetime)
