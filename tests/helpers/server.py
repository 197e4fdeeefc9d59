"""The complete server in memory, built as in production, on an inline SQLite database, with a clock
that moves only by `server.clock.advance`.

    alice = server.register("alice")
    answer = alice.put("/_matrix/client/v3/…", {"topic": "tea"})
    assert answer.status == 200

`TestServer(tmp_path, sqlite_database)` makes one; its third argument is further configuration.
"""

from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import replace
from email import message_from_bytes
from email.message import EmailMessage
from email.policy import default
from functools import lru_cache
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

from prometheus_client import CollectorRegistry
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from federation.http_client.body import TakeBody
from federation.http_client.client import WebClient, WebResponse
from federation.http_client.errors import OutboundError
from federation.peers.member_list_refresher import Fetch
from federation.peers.wire import Wire, WireRequest, WireResponse
from federation.protocol.errors import RemoteError
from federation.protocol.ids import DeviceID, ServerName, UserID
from federation.protocol.signing import SigningKey
from federation.remote.media import Follow
from homeserver.app import build
from homeserver.config.configuration import Config
from homeserver.config.load import ConfigError, load_config
from homeserver.server import Server
from homeserver.services.email.smtp import DeliveryFailed
from homeserver.services.previews.fetching import PreviewClient
from homeserver.wiring.media import MediaThreads
from storage.engine.database import Database
from storage.engine.executors import Executor, InlineExecutor
from tests.helpers.executors import InlineThreads
from tests.helpers.http import Answer, Client, Pending, RememberingAccessLog

T = TypeVar("T")

START = 1_700_000_000.0
OPEN_CONFIG = """
enable_registration: true
enable_registration_without_verification: true
allow_guest_access: true
bcrypt_rounds: 4
password_config: {policy: {enabled: false}}
rc_room_creation: &unlimited {per_second: 100000, burst_count: 100000}
rc_message: *unlimited
rc_registration: *unlimited
rc_login: {address: *unlimited, account: *unlimited, failed_attempts: *unlimited}
rc_joins: {local: *unlimited, remote: *unlimited}
rc_joins_per_room: *unlimited
rc_invites: {per_room: *unlimited, per_user: *unlimited, per_issuer: *unlimited}
rc_profile: *unlimited
rc_hierarchy: *unlimited
rc_threads: *unlimited
rc_timestamp_to_event: *unlimited
rc_receipts: *unlimited
rc_account_data: *unlimited
rc_memberships: *unlimited
rc_aliases: *unlimited
rc_typing: *unlimited
rc_forget: *unlimited
rc_device_changes: *unlimited
rc_federation: {sleep_limit: 100000, reject_limit: 100000, concurrent: 100000}
"""
NO_PRESENCE = "presence: {enabled: false}\n"
"""The default, since presence updates would wake long polls that wait for something else."""


class MemoryRelay:
    """An in-memory mail relay that stores e-mails. If `failure` is set, it raises that instead."""

    def __init__(self) -> None:
        self.emails: list[tuple[str, EmailMessage]] = []
        self.failure: DeliveryFailed | None = None

    def deliver(self, _sender: str, recipient: str, message: bytes) -> None:
        if self.failure is not None:
            raise self.failure
        email = message_from_bytes(message, policy=default)
        assert isinstance(email, EmailMessage)
        self.emails.append((recipient, email))


class UnreachableWeb:
    """A web client whose requests fail."""

    async def request(
        self,
        method: str,
        url: str,
        headers: Sequence[tuple[str, str]] = (),
        body: bytes = b"",
        *,
        seconds: float = 30,
        max_bytes: int = 1 << 20,
        redirects: int = 0,
        only_https: bool = False,
        take: TakeBody | None = None,
    ) -> WebResponse:
        raise OutboundError("the host is unreachable")


class UnreachableWire:
    """A wire whose requests fail."""

    async def exchange(self, destination: ServerName, request: WireRequest) -> WireResponse:
        raise RemoteError(destination, "the server is unreachable", retryable=True)


async def fetch_nothing(url: str) -> bytes:
    """Fail for any URL."""
    raise OutboundError(f"there is nothing at {url}")


async def follow_nowhere(url: str, _take: TakeBody, _seconds: float, _max_bytes: int) -> int:
    """Fail for any redirect of a media download."""
    raise OutboundError(f"there is nothing at {url}")


def read_config(text: str, path: Path) -> Config:
    """Load the configuration at this path, whose text is known. Raises `ConfigError`."""
    config = None if str(path.parent) in text else _read(text)
    if config is None:
        return load_config([path], {}).config
    return replace(config, folder=path.parent.absolute())


@lru_cache(maxsize=256)
def _read(text: str) -> Config | None:
    """Load a configuration, cached, since many tests share one and loading is half the cost of a
    server. Return None if the result depends on its folder or is invalid."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "homeserver.yaml"
        path.write_text(text, encoding="utf-8")
        try:
            config = load_config([path], {}).config
        except ConfigError:
            return None
    return None if folder in repr(replace(config, folder=Path())) else config


class TestServer:
    """The server, and its users."""

    __test__ = False

    def __init__(
        self,
        folder: Path,
        database: Database,
        further_config: str = "",
        seed: int = 1,
        now: float = START,
        *,
        server_name: str = "example.org",
        clock: Clock | None = None,
        wire: Wire | None = None,
        fetch: Fetch = fetch_nothing,
        follow: Follow = follow_nowhere,
        preview_web: PreviewClient | None = None,
        web: WebClient | None = None,
        images: Executor | None = None,
        photos: Executor | None = None,
        key: SigningKey | None = None,
    ) -> None:
        """`seed` determines all random values, including IDs and tokens: a second server on the
        same database needs another seed.

        `wire` reaches other servers, `fetch` federation URLs, `follow` media redirects,
        `preview_web` linked pages, and `web` push gateways; by default all fail. `images` runs
        thumbnailing and `photos` the search for photo locations, by default inline.
        """
        path = folder / "homeserver.yaml"
        others = "" if "presence:" in further_config else NO_PRESENCE
        given = {line.partition(":")[0] for line in further_config.splitlines()}
        opened = "\n".join(
            line for line in OPEN_CONFIG.splitlines() if line.partition(":")[0] not in given
        )
        text = f"server_name: {server_name}\n{opened}\n{others}{further_config}"
        path.write_text(text, encoding="utf-8")
        self.clock = clock if clock is not None else Clock()
        if clock is None:
            self.clock.advance(now)
        self._jumped = 0.0
        self.relay = MemoryRelay()
        self.config = read_config(text, path)
        self.registry = CollectorRegistry()
        access_log = RememberingAccessLog()
        self.threads = InlineThreads()
        self.app: Server = build(
            self.config,
            self.clock,
            database,
            key=key
            or SigningKey(
                "a_test",
                bytes(32) if server_name == "example.org" else server_name.encode().ljust(32)[:32],
            ),
            threads=self.threads,
            directory_threads=InlineThreads(),
            media_threads=MediaThreads(
                files=InlineExecutor(),
                images=images if images is not None else InlineExecutor(),
                photos=photos if photos is not None else InlineExecutor(),
                pages=InlineExecutor(),
                object_reads=InlineExecutor(),
                object_writes=InlineExecutor(),
                scans=InlineExecutor(),
            ),
            mail_thread=InlineExecutor(),
            make_relay=lambda _: self.relay,
            wire=wire if wire is not None else UnreachableWire(),
            web=web if web is not None else UnreachableWeb(),
            fetch=fetch,
            follow=follow,
            preview_web=preview_web if preview_web is not None else UnreachableWeb(),
            random=Random(seed).randbytes,
            monotonic=lambda: self.clock.seconds() - self._jumped,
            access_log=access_log,
            registry=self.registry,
        )
        site = self.app.sites.make(self.config.network.listeners[0])
        self.client = Client(site, clock=self.clock, access_log=access_log)

    def register(self, name: str, password: str = "wonderland") -> "User":
        """Register a user and sign in."""
        body = {"username": name, "password": password, "auth": {"type": "m.login.dummy"}}
        answer = self.post("/_matrix/client/v3/register", body)
        assert answer.status == 200, answer.body
        return User(self, answer.json)

    def jump(self, seconds: float) -> None:
        """Set the wall clock forwards without advancing the monotonic clock."""
        self._jumped += seconds
        self.clock.advance(seconds)

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine that finishes at once; return its result. For internals that no endpoint
        reaches."""
        done: list[T] = []
        Deferred.fromCoroutine(work).addCallback(done.append)
        return done[0]

    def get(self, path: str, **options: Any) -> Answer:
        return self.client.request("GET", path, **options)

    def post(self, path: str, json: Any = None, **options: Any) -> Answer:
        return self.client.request("POST", path, json=json, **options)

    def put(self, path: str, json: Any = None, **options: Any) -> Answer:
        return self.client.request("PUT", path, json=json, **options)


class User:
    """A signed-in user."""

    def __init__(self, server: TestServer, session: Mapping[str, Any]) -> None:
        self.server = server
        self.user_id = UserID(session["user_id"])
        self.token = str(session["access_token"])
        self.device_id = DeviceID(session["device_id"])

    def get(self, path: str) -> Answer:
        return self.server.client.request("GET", path, token=self.token)

    def put(self, path: str, json: Any) -> Answer:
        return self.server.client.request("PUT", path, token=self.token, json=json)

    def post(self, path: str, json: Any = None) -> Answer:
        return self.server.client.request(
            "POST", path, token=self.token, json={} if json is None else json
        )

    def delete(self, path: str, json: Any = None) -> Answer:
        return self.server.client.request("DELETE", path, token=self.token, json=json)

    def start(self, method: str, path: str, json: Any = None) -> Pending:
        """Send a request whose response may come later, such as a long poll."""
        return self.server.client.start(method, path, token=self.token, json=json)


def make_admin(server: TestServer) -> User:
    """Register the administrator `root`."""
    root = server.register("root")
    server.run(server.app.user_data.accounts.do_set_flags(root.user_id, is_admin=True))
    return root


def move_user(server: TestServer, user: User) -> User:
    """Return the user's session on another server object of the same database."""
    session = {"user_id": user.user_id, "access_token": user.token, "device_id": user.device_id}
    return User(server, session)


def register_guest(server: TestServer) -> User:
    """Register a guest."""
    answer = server.post("/_matrix/client/v3/register?kind=guest", {})
    assert answer.status == 200, answer.body
    return User(server, answer.json)
