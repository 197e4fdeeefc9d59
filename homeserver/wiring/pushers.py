"""Wires pushers, for push gateways and e-mail digests."""

from collections.abc import Sequence
from typing import Final

from federation.http_client.client import WebClient
from homeserver.cluster.jobs import Job
from homeserver.config.configuration import Config
from homeserver.observe.push import PushMetrics, PushQueueMetrics, QueueMetrics
from homeserver.services.push.old_push_actions import PushActionCleanup
from homeserver.services.pushers.active_readers import ActiveReaders
from homeserver.services.pushers.badges import BadgeCounts
from homeserver.services.pushers.deliveries import PushDeliveries
from homeserver.services.pushers.digest_texts import DigestTexts
from homeserver.services.pushers.digests import EmailDigests
from homeserver.services.pushers.display_names import EventNames
from homeserver.services.pushers.email_pushers import EmailNotifier, NoEmailNotifier
from homeserver.services.pushers.gateways import Gateways
from homeserver.services.pushers.missed_messages import MissedEvents
from homeserver.services.pushers.pusher_users import PusherUsers
from homeserver.services.pushers.pushers import Pushers
from homeserver.services.pushers.stream_reader import PushStreamReader
from homeserver.services.pushers.unsubscribe import UnsubscribeLinks
from homeserver.services.tokens.secret_tokens import RandomBytes
from homeserver.wiring.accounts import AccountParts
from homeserver.wiring.email import EmailParts
from homeserver.wiring.foundation import Foundation
from homeserver.wiring.notifications import NotificationParts
from homeserver.wiring.presence import PresenceParts
from homeserver.wiring.room_data import RoomDataParts
from homeserver.wiring.room_reading import RoomReadingParts
from homeserver.wiring.user_settings import UserSettingParts
from storage.cluster.node_lease import NodeLease
from storage.encryption.outgoing_to_device import OutgoingToDeviceStore
from storage.push.old_push_actions import OldPushActionStore
from storage.push.push_stream import PushStream
from storage.rooms.receipts import ReceiptStore
from storage.rooms.summaries import RoomSummaryStore

USERS_CACHED = 20_000
COUNT_SECONDS: Final = 300.0
"""Seconds between two counts of pending pushes and messages, for metrics."""
DELETE_SECONDS: Final = 24 * 3600.0


class PusherParts:
    """The services for pushers. Public attributes are for the other parts and the router."""

    def __init__(
        self,
        *,
        base: Foundation,
        random: RandomBytes,
        web: WebClient,
        accounts: AccountParts,
        rooms: RoomDataParts,
        settings: UserSettingParts,
        room_reading: RoomReadingParts,
        notifications: NotificationParts,
        presence: PresenceParts,
        email: EmailParts,
    ) -> None:
        """`web` sends requests to push gateways."""
        config, clock, database, registry = base.config, base.clock, base.database, base.registry
        summary_store = RoomSummaryStore(database)
        push, store = config.notifications.push, accounts.stores.pushers
        self._store, self._to_device, self._outgoing = (
            store,
            accounts.stores.to_device,
            OutgoingToDeviceStore(database=database),
        )
        self._waiting = QueueMetrics(registry)
        self.push_action_cleanup = PushActionCleanup(
            store=OldPushActionStore(database), now_ms=base.now_ms
        )
        self._enabled = push.enabled
        self.pushers = Pushers(
            now_ms=base.now_ms,
            database=database,
            store=store,
            threepids=email.threepids,
            by_email=sends_notification_emails(config),
            plain_http=push.allow_plain_http,
        )
        self.new_addresses = (
            self.pushers
            if sends_notification_emails(config) and config.mail.email.notif_for_new_users
            else None
        )
        """The handler of new accounts' e-mail addresses."""
        self.unsubscribing = UnsubscribeLinks(
            database=database,
            store=store,
            key=base.identity.key,
            base_url=config.name.public_baseurl or "",
        )
        metrics = PushMetrics(registry)
        badges = BadgeCounts(
            memberships=rooms.memberships,
            unread=notifications.unread,
            ignored=settings.ignored,
            permissions=settings.permissions,
            by_room=push.group_unread_count_by_room,
        )
        self.deliveries = PushDeliveries(
            clock=clock,
            store=store,
            events=rooms.events,
            memberships=rooms.memberships,
            decisions=notifications.push_decisions,
            names=EventNames(
                memberships=rooms.membership_store,
                summaries=summary_store,
                out_of_room=rooms.out_of_room,
            ),
            badges=badges,
            readers=ActiveReaders(clock=clock, syncs=presence.notifier),
            gateways=Gateways(clock=clock, web=web, metrics=metrics),
            now_ms=base.now_ms,
            random=lambda: int.from_bytes(random(4), "big") / 2**32,
            with_content=push.include_content,
            jitter_seconds=push.jitter_delay / 1000,
        )
        PushQueueMetrics(registry=registry, read=self.deliveries.get_figures)
        self.reading = PushStreamReader(
            clock=clock,
            streams=database.streams,
            lease=NodeLease(
                database=database, name="push", process=random(16).hex(), get_node=accounts.get_node
            ),
            stream=PushStream(database),
            store=store,
            accounts=accounts.stores.accounts,
            rooms=rooms.store,
            events=rooms.events,
            memberships=rooms.memberships,
            out_of_room=rooms.out_of_room,
            decisions=notifications.push_decisions,
            pusher_users=PusherUsers(store=store, capacity=USERS_CACHED),
            badges=badges,
            deliveries=self.deliveries,
            emails=self._email_notifier(
                base, accounts, rooms, settings, room_reading, notifications, email
            ),
            now_ms=base.now_ms,
        )

    def _email_notifier(
        self,
        base: Foundation,
        accounts: AccountParts,
        rooms: RoomDataParts,
        settings: UserSettingParts,
        room_reading: RoomReadingParts,
        notifications: NotificationParts,
        email: EmailParts,
    ) -> EmailNotifier:
        """Return the service that sends e-mail digests of missed events."""
        config, database = base.config, base.database
        summary_store = RoomSummaryStore(database)
        if email.outbox is None or not sends_notification_emails(config):
            return NoEmailNotifier()
        missed = MissedEvents(
            streams=database.streams,
            rooms=rooms.store,
            events=rooms.events,
            memberships=rooms.memberships,
            receipts=ReceiptStore(database),
            unread=notifications.unread,
            ignored=settings.ignored,
            decisions=notifications.push_decisions,
            invited=room_reading.invited,
            aggregations=room_reading.aggregations,
        )
        texts = DigestTexts(
            memberships=rooms.membership_store,
            summaries=summary_store,
            invited=room_reading.invited,
            server_name=config.server_name,
            client_url=config.mail.email.client_base_url,
            with_content=config.notifications.push.include_content,
        )
        digests = EmailDigests(
            clock=base.clock,
            database=database,
            store=accounts.stores.pushers,
            profiles=accounts.stores.profiles,
            missed=missed,
            texts=texts,
            unsubscribing=self.unsubscribing,
            outbox=email.outbox,
            languages=email.languages,
            now_ms=base.now_ms,
            app_name=config.mail.email.app_name,
            delay_ms=config.mail.email.notif_delay_before_mail,
        )
        # The outbox sends the digests and first asks them whether the events are still unread:
        # each needs the other, so this reference is set after construction.
        email.outbox.use_unread_check(digests.is_missed)
        return digests

    def jobs(self) -> Sequence[Job]:
        """Return the background jobs."""
        return (
            Job("count_push_queues", self._count_waiting, COUNT_SECONDS),
            Job("delete_old_push_actions", self.push_action_cleanup.do_delete, DELETE_SECONDS),
        )

    async def _count_waiting(self, _batch: int) -> int:
        self._waiting.set_pushers(await self._store.count_pushers())
        remote = sum((await self._outgoing.count_messages()).values())
        self._waiting.set_to_device_messages(await self._to_device.count_messages(), remote)
        return 0

    def start(self) -> None:
        """Start to push."""
        if self._enabled:
            self.reading.start()

    async def stop(self) -> None:
        """Stop pushing."""
        await self.reading.stop()

    @property
    def services(self) -> Sequence[object]:
        """The services that endpoints ask for."""
        return (self.pushers, self.unsubscribing)


def sends_notification_emails(config: Config) -> bool:
    """Whether users can receive e-mail digests of missed events."""
    email = config.mail.email
    return email.smtp_host is not None and email.enable_notifs
