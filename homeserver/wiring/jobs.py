"""Lists the background jobs that no other wiring module creates."""

from collections.abc import Sequence
from typing import Final

from twisted.internet.interfaces import IReactorTime

from homeserver.cluster.jobs import Job
from homeserver.services.login.last_seen import LastSeen
from homeserver.services.login.login_tokens import LoginTokens
from homeserver.services.login.uia import UIA
from homeserver.services.presence.presence import Presence
from homeserver.services.sliding_sync.connections import MAX_IDLE_MS
from homeserver.services.threepids.validation import ThreepidValidation
from storage.engine.database import Database
from storage.engine.transaction import WriteTransaction
from storage.maintenance.state_garbage_collection import StateGarbageCollector
from storage.rooms.sent_transactions import SentTransactionStore
from storage.sync.sliding_connections import SlidingConnectionStore

SENT_RETENTION_SECONDS: Final = 24 * 3600
"""Seconds for which a client may repeat a request with its transaction ID."""


def make_maintenance_jobs(
    clock: IReactorTime,
    database: Database,
    uia: UIA,
    login_tokens: LoginTokens,
    validations: ThreepidValidation,
    presence: Presence,
    last_seen: LastSeen,
) -> Sequence[Job]:
    """Return the jobs that belong to none of the other parts."""
    sent = SentTransactionStore(database)
    connections = SlidingConnectionStore(database)

    async def forget_sent(batch: int) -> int:
        return await sent.remove_before(
            int((clock.seconds() - SENT_RETENTION_SECONDS) * 1000), batch
        )

    async def forget_connections(batch: int) -> int:
        return await connections.remove_unused(int(clock.seconds() * 1000) - MAX_IDLE_MS, batch)

    async def collect_state(batch: int) -> int:
        collector = StateGarbageCollector(batch)

        def step(txn: WriteTransaction) -> int:
            return batch if collector.step(txn) else 0

        return await database.write("collect_state_garbage", step)

    return (
        Job("delete_old_client_transactions", forget_sent, 6 * 3600.0),
        Job("delete_unused_sliding_connections", forget_connections, 3600.0),
        Job("delete_expired_uia_sessions", uia.do_sweep, 300.0),
        Job("delete_expired_login_tokens", login_tokens.do_sweep, 600.0),
        Job("delete_expired_threepid_validations", validations.do_sweep, 600.0),
        Job("delete_old_device_addresses", last_seen.do_delete_old_addresses, 3600.0),
        Job("collect_state_garbage", collect_state, 60.0),
        Job("expire_remote_presence", presence.do_expire_remote, 60.0),
    )
