"""Puts together who types, and who is there."""

from twisted.internet.interfaces import IReactorTime

from federation.identity import ServerIdentity
from federation.rooms.memberships import Memberships
from homeserver.config.whole import Config
from homeserver.http.rate_limits import RateLimiter
from homeserver.node_notes import NodeNotes
from homeserver.notifier import Notifier
from homeserver.services.ephemeral import EphemeralCounter
from homeserver.services.presence.people import PresenceTimes
from homeserver.services.presence.presence import Presence
from homeserver.services.presence.remote_people import RemotePeople
from homeserver.services.presence.roster import Roster
from homeserver.services.presence.telling import Telling
from homeserver.services.typing import Typing
from storage.database import Database
from storage.presence import PresenceStore


class WhoIsThere:
    """Who types and who is there, as it is configured."""

    def __init__(
        self,
        config: Config,
        clock: IReactorTime,
        database: Database,
        memberships: Memberships,
        notifier: Notifier,
        limiter: RateLimiter,
        identity: ServerIdentity,
        notes: NodeNotes | None,
    ) -> None:
        counter = EphemeralCounter(clock)
        self.typing = Typing(notifier, clock, counter, memberships, database.streams, notes)
        presence = config.people.presence
        times = PresenceTimes(
            active=presence.last_active_granularity / 1000,
            idle=presence.idle_timeout / 1000,
            grace=presence.sync_online_timeout / 1000,
        )
        remote = RemotePeople(clock, identity.server_name)
        roster = Roster(clock, database, PresenceStore(database), remote, counter)
        self.presence = Presence(
            clock,
            roster,
            remote,
            Telling(clock, roster, memberships, notifier, times),
            memberships,
            limiter,
            server_name=identity.server_name,
            times=times,
            mode=presence.enabled,
            notes=notes,
        )
