"""Puts together who is there."""

from twisted.internet.interfaces import IReactorTime

from federation.identity import ServerIdentity
from federation.rooms.memberships import Memberships
from homeserver.config.whole import Config
from homeserver.http.rate_limits import RateLimiter
from homeserver.notifier import Notifier
from homeserver.services.ephemeral import EphemeralCounter
from homeserver.services.presence.people import PresenceTimes
from homeserver.services.presence.presence import Presence
from homeserver.services.presence.remote_people import RemotePeople
from homeserver.services.presence.roster import Roster
from homeserver.services.presence.telling import Telling
from storage.database import Database
from storage.presence import PresenceStore


def presence_of(
    config: Config,
    clock: IReactorTime,
    database: Database,
    memberships: Memberships,
    notifier: Notifier,
    counter: EphemeralCounter,
    limiter: RateLimiter,
    identity: ServerIdentity,
) -> Presence:
    """Presence as it is configured."""
    presence = config.people.presence
    times = PresenceTimes(
        active=presence.last_active_granularity / 1000,
        idle=presence.idle_timeout / 1000,
        grace=presence.sync_online_timeout / 1000,
    )
    remote = RemotePeople(clock, identity.server_name)
    roster = Roster(clock, database, PresenceStore(database), remote, counter)
    return Presence(
        clock,
        roster,
        remote,
        Telling(clock, roster, memberships, notifier, times),
        memberships,
        limiter,
        server_name=identity.server_name,
        times=times,
        mode=presence.enabled,
    )
