"""Wires the services for calls: delayed events, OpenID tokens, TURN servers."""

from collections.abc import Sequence

from twisted.internet.interfaces import IReactorTime

from federation.peers.identity import ServerIdentity
from homeserver.cluster.jobs import Job
from homeserver.config.configuration import Config
from homeserver.http.rate_limits import RateLimiter
from homeserver.services.calls.turn import Turn
from homeserver.services.login.openid import OpenID
from homeserver.services.rooms.delayed_events import DelayedEvents
from homeserver.wiring.accounts import AccountParts
from homeserver.wiring.rooms import RoomParts
from storage.engine.database import Database
from storage.login.openid_tokens import OpenIDTokenStore
from storage.rooms.delayed_events import DelayedEventStore


class CallParts:
    """The services for calls. Public attributes are for the router."""

    def __init__(
        self,
        config: Config,
        clock: IReactorTime,
        database: Database,
        limiter: RateLimiter,
        identity: ServerIdentity,
        accounts: AccountParts,
        rooms: RoomParts,
    ) -> None:
        self.delayed_events = DelayedEvents(
            clock,
            database,
            DelayedEventStore(database),
            accounts.store,
            rooms.sending,
            rooms.reading,
            limiter,
            accounts.secret_text,
            accounts.validity,
            rooms.events,
            rooms.lifetimes,
            longest_ms=config.rooms.max_event_delay_duration,
        )
        self.openid = OpenID(
            clock,
            database,
            OpenIDTokenStore(database),
            accounts.store,
            accounts.secret_text,
            server_name=identity.server_name,
            validity=accounts.validity,
        )
        self._sticky_events = rooms.sticky_events
        calls = config.calls
        self.turn = Turn(
            clock,
            uris=calls.turn_uris,
            shared_secret=calls.turn_shared_secret,
            username=calls.turn_username,
            password=calls.turn_password,
            lifetime_ms=calls.turn_user_lifetime,
            guests=calls.turn_allow_guests,
        )

    def jobs(self) -> Sequence[Job]:
        """Return the background jobs."""
        return (
            # due events have a timer; the job finds those that another node failed to send
            Job("send_delayed_events", self.delayed_events.do_send_due, 10.0),
            Job("forget_delayed_events", self.delayed_events.do_forget, 3600.0),
            Job("forget_sticky_events", self._sticky_events.do_forget, 300.0),
            Job("forget_openid_tokens", self.openid.do_forget, 600.0),
        )
