"""Starts, reloads and stops a complete server, and contains all its objects, grouped by topic.

`homeserver/app.py` creates the server.
"""

from collections.abc import Coroutine
from typing import Any, ClassVar

import msgspec
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import (
    IReactorFDSet,
    IReactorSSL,
    IReactorTCP,
    IReactorTime,
    IReactorUNIX,
)
from twisted.logger import Logger

from homeserver.cluster.background import Background
from homeserver.cluster.jobs import Jobs
from homeserver.cluster.peer_nodes import PeerNodes
from homeserver.config.configuration import Config
from homeserver.http.sites import Listeners, Sites
from homeserver.wiring.accounts import AccountParts
from homeserver.wiring.calls import CallParts
from homeserver.wiring.devices import DeviceParts
from homeserver.wiring.email import EmailParts
from homeserver.wiring.federated_rooms import FederatedRoomParts
from homeserver.wiring.federation import FederationParts
from homeserver.wiring.federation_peers import (
    FederationPeerParts,
    read_member_list_source,
    read_policy_rules,
)
from homeserver.wiring.federation_receiver import FederationReceiverParts
from homeserver.wiring.federation_sender import FederationSenderParts
from homeserver.wiring.login import LoginParts
from homeserver.wiring.media import MediaParts
from homeserver.wiring.notifications import NotificationParts
from homeserver.wiring.oauth import OAuthParts
from homeserver.wiring.presence import PresenceParts
from homeserver.wiring.profiles import ProfileParts
from homeserver.wiring.push_rules import PushRuleParts
from homeserver.wiring.pushers import PusherParts
from homeserver.wiring.retention import RetentionParts
from homeserver.wiring.room_data import RoomDataParts
from homeserver.wiring.room_engine import RoomEngineParts
from homeserver.wiring.room_history import RoomHistoryParts
from homeserver.wiring.room_reading import RoomReadingParts
from homeserver.wiring.room_services import RoomServiceParts
from homeserver.wiring.search import SearchParts
from homeserver.wiring.sync import SyncingParts
from homeserver.wiring.user_data import UserDataParts
from homeserver.wiring.user_settings import UserSettingParts
from homeserver.wiring.web import WebParts
from storage.engine.database import Database


class Server(msgspec.Struct, frozen=True, eq=False, kw_only=True):
    """A complete server: its objects, grouped by topic (`homeserver/wiring/`)."""

    log: ClassVar[Logger] = Logger()

    config: Config
    clock: IReactorTime
    database: Database
    sites: Sites
    listeners: Listeners
    background: Background
    jobs: Jobs
    peer_nodes: PeerNodes | None

    accounts: AccountParts
    calls: CallParts
    devices: DeviceParts
    peers: FederationPeerParts
    federated_rooms: FederatedRoomParts
    federation: FederationParts
    federation_sender: FederationSenderParts
    search: SearchParts
    login: LoginParts
    history: RoomHistoryParts
    federation_receiver: FederationReceiverParts
    email: EmailParts
    media: MediaParts
    notifications: NotificationParts
    oauth: OAuthParts
    pages: WebParts
    user_data: UserDataParts
    presence: PresenceParts
    profiles: ProfileParts
    push_rules: PushRuleParts
    pushers: PusherParts
    retention: RetentionParts
    room_engine: RoomEngineParts
    room_reading: RoomReadingParts
    room_services: RoomServiceParts
    rooms: RoomDataParts
    settings: UserSettingParts
    sync: SyncingParts

    def start(self, tcp: IReactorTCP, tls: IReactorSSL, unix: IReactorUNIX) -> None:
        """Start to listen, then start the background work. Raises `CannotListenError`, and for TLS
        `OSError`, `SSL.Error`."""
        self.media.sweep()
        self.listeners.start(tcp, tls, unix)
        self._do(self.peers.member_lists.start())
        self.background.start()
        if self.peer_nodes is not None:
            self.peer_nodes.start(IReactorFDSet(tcp, None))
        self.listeners.log_addresses()

    def reload(self, config: Config) -> None:
        """Apply the options that can change without a restart: the federation policy and
        certificates.

        Raises `OSError`, `ValueError`, `SSL.Error` if a certificate cannot be read; the old one
        stays then.
        """
        source = read_member_list_source(config.federation)
        self.peers.policy.change(read_policy_rules(config.federation))
        self._do(self.peers.member_lists.change(source))
        self.listeners.reload_certificates()

    def _do(self, work: Coroutine[Deferred[Any], Any, None]) -> None:
        Deferred.fromCoroutine(work).addErrback(
            lambda failure: self.log.failure("the federation member list was not read", failure)
        )

    async def stop(self) -> None:
        """Stop listening, write pending data, and close the database. Connections end with the
        process."""
        self.log.info("stopping")
        await self.listeners.stop()
        await self.background.stop()
        await self.database.close()
