"""Wires the services for calls: delayed events, OpenID tokens, TURN servers, and the job that
deletes expired sticky events."""

from collections.abc import Sequence

from homeserver.cluster.jobs import Job
from homeserver.services.calls.turn import Turn
from homeserver.services.login.openid import OpenID
from homeserver.services.rooms.delayed_events import DelayedEvents
from homeserver.wiring.accounts import AccountParts
from homeserver.wiring.foundation import Foundation
from homeserver.wiring.room_data import RoomDataParts
from homeserver.wiring.room_history import RoomHistoryParts
from homeserver.wiring.room_reading import RoomReadingParts
from homeserver.wiring.room_services import RoomServiceParts
from storage.login.openid_tokens import OpenIDTokenStore
from storage.rooms.delayed_events import DelayedEventStore


class CallParts:
    """The services for calls. Public attributes are for the router."""

    def __init__(
        self,
        *,
        base: Foundation,
        accounts: AccountParts,
        rooms: RoomDataParts,
        history: RoomHistoryParts,
        room_reading: RoomReadingParts,
        services: RoomServiceParts,
    ) -> None:
        config, clock, database = base.config, base.clock, base.database
        self.delayed_events = DelayedEvents(
            clock=clock,
            database=database,
            store=DelayedEventStore(database),
            accounts=accounts.stores.accounts,
            sending=services.sending,
            reading=room_reading.reading,
            limiter=base.limiter,
            secret_text=accounts.secret_text,
            validity=accounts.validity,
            events=rooms.events,
            retention=history.retention,
            max_delay_ms=config.rooms.max_event_delay_duration,
        )
        self.openid = OpenID(
            clock=clock,
            database=database,
            store=OpenIDTokenStore(database),
            accounts=accounts.stores.accounts,
            secret_text=accounts.secret_text,
            server_name=base.identity.server_name,
            validity=accounts.validity,
        )
        self._sticky_events = rooms.sticky_events
        calls = config.calls
        self.turn = Turn(
            clock=clock,
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
            Job("delete_finished_delayed_events", self.delayed_events.do_delete_outcomes, 3600.0),
            Job("delete_expired_sticky_events", self._sticky_events.do_remove_expired, 300.0),
            Job("delete_expired_openid_tokens", self.openid.do_delete_expired, 600.0),
        )

    @property
    def services(self) -> Sequence[object]:
        """The services that endpoints ask for."""
        return (self.delayed_events, self.openid, self.turn)
