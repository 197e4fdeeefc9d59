"""Wires presence, typing notifications, and the notifier that wakes long polls."""

from collections.abc import Sequence

from twisted.internet.defer import Deferred
from twisted.logger import Logger

from federation.rooms.memberships import Memberships
from homeserver.cluster.notifier import Notifier
from homeserver.services.ephemeral.typing import Typing
from homeserver.services.presence.active_users import PresenceTable
from homeserver.services.presence.broadcast import PresenceBroadcaster
from homeserver.services.presence.presence import Presence
from homeserver.services.presence.remote_users import RemotePresenceCache
from homeserver.services.presence.states import PresenceTimes
from homeserver.services.streams.ephemeral_counter import EphemeralCounter
from homeserver.wiring.accounts import AccountParts
from homeserver.wiring.foundation import Foundation
from storage.presence.presence import PresenceStore


class PresenceParts:
    """The notifier, typing and presence, as configured."""

    log = Logger()

    def __init__(
        self, *, base: Foundation, accounts: AccountParts, memberships: Memberships
    ) -> None:
        config, clock, database = base.config, base.clock, base.database
        limiter, identity, messages = base.limiter, base.identity, accounts.node_messages
        self.notifier = notifier = Notifier(
            streams=database.streams,
            memberships=memberships,
            clock=clock,
            check_session=accounts.access_tokens.recheck,
            incoming_changes=accounts.incoming_changes,
        )
        counter = EphemeralCounter(clock)
        self.typing = Typing(
            notifier=notifier,
            clock=clock,
            counter=counter,
            memberships=memberships,
            streams=database.streams,
            messages=messages,
        )
        presence = config.users.presence
        times = PresenceTimes(
            active=presence.last_active_granularity / 1000,
            idle=presence.idle_timeout / 1000,
            grace=presence.sync_online_timeout / 1000,
        )
        remote = RemotePresenceCache(clock=clock, server_name=identity.server_name)
        table = PresenceTable(
            clock=clock,
            database=database,
            store=PresenceStore(database),
            remote=remote,
            counter=counter,
        )
        self.presence = Presence(
            clock=clock,
            table=table,
            remote=remote,
            broadcaster=PresenceBroadcaster(
                clock=clock, table=table, memberships=memberships, notifier=notifier, times=times
            ),
            memberships=memberships,
            limiter=limiter,
            server_name=identity.server_name,
            times=times,
            mode=presence.enabled,
            messages=messages,
        )

    def start(self) -> None:
        """Load who was online before a restart."""
        Deferred.fromCoroutine(self.presence.start()).addErrback(
            lambda failure: self.log.failure(
                "cannot load the presence from before the start", failure
            )
        )

    @property
    def services(self) -> Sequence[object]:
        """The services that endpoints ask for."""
        return (self.presence, self.typing)
