"""Wires typing notifications and presence."""

from twisted.internet.interfaces import IReactorTime

from federation.peers.identity import ServerIdentity
from federation.rooms.memberships import Memberships
from homeserver.cluster.notifier import Notifier
from homeserver.cluster.notify import NodeNotes
from homeserver.config.configuration import Config
from homeserver.http.rate_limits import RateLimiter
from homeserver.services.ephemeral.typing import Typing
from homeserver.services.presence.active_users import Roster
from homeserver.services.presence.broadcast import Telling
from homeserver.services.presence.presence import Presence
from homeserver.services.presence.remote_users import RemotePeople
from homeserver.services.presence.states import PresenceTimes
from homeserver.services.streams.ephemeral_counter import EphemeralCounter
from storage.engine.database import Database
from storage.presence.presence import PresenceStore


class WhoIsThere:
    """Typing and presence, as configured."""

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
