"""Wires the notifier of waiting requests, typing notifications and presence."""

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


class WhoIsThere:
    """The notifier, typing and presence, as configured."""

    log = Logger()

    def __init__(self, base: Foundation, accounts: AccountParts, memberships: Memberships) -> None:
        config, clock, database = base.config, base.clock, base.database
        limiter, identity, notes = base.limiter, base.identity, accounts.node_notes
        self.notifier = notifier = Notifier(
            database.streams,
            memberships,
            clock,
            accounts.access_tokens.recheck,
            accounts.others,
        )
        counter = EphemeralCounter(clock)
        self.typing = Typing(notifier, clock, counter, memberships, database.streams, notes)
        presence = config.people.presence
        times = PresenceTimes(
            active=presence.last_active_granularity / 1000,
            idle=presence.idle_timeout / 1000,
            grace=presence.sync_online_timeout / 1000,
        )
        remote = RemotePresenceCache(clock, identity.server_name)
        roster = PresenceTable(clock, database, PresenceStore(database), remote, counter)
        self.presence = Presence(
            clock,
            roster,
            remote,
            PresenceBroadcaster(clock, roster, memberships, notifier, times),
            memberships,
            limiter,
            server_name=identity.server_name,
            times=times,
            mode=presence.enabled,
            notes=notes,
        )

    def start(self) -> None:
        """Load who was online before a restart."""
        Deferred.fromCoroutine(self.presence.start()).addErrback(
            lambda failure: self.log.failure(
                "cannot load the presence from before the start", failure
            )
        )
