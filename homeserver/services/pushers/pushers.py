"""Lists, sets and removes pushers.

Laws:
- An HTTP pusher belongs to the device that set it and is removed with it. An e-mail pusher is
  removed with its address.
- The fields of a pusher are checked once, when it is set. Pushes go only to gateway URLs that
  passed these checks. The address policy is applied at each push (`gateways.py`).

spec: client-server-api#post_matrixclientv3pushersset; MSC3881 (switching the pusher of another
device), MSC4076
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final
from urllib.parse import urlsplit

import msgspec
from msgspec.structs import replace

from federation.protocol.errors import Forbidden, InvalidParam, MissingParam
from federation.protocol.ids import UserID
from homeserver.api.requester import Requester
from homeserver.services.threepids.email_validation import parse_email_address
from storage.engine.database import Database
from storage.engine.transaction import Transaction, WriteTransaction
from storage.push.pushers import GatewayRow, PusherRow, PusherStore
from storage.threepids.threepids import ThreepidStore

HTTP: Final = "http"
EMAIL: Final = "email"
EMAIL_APP: Final = "m.email"
NOTIFY_PATH: Final = "/_matrix/push/v1/notify"
EVENT_ID_ONLY: Final = "event_id_only"
NO_COUNTS: Final = "org.matrix.msc4076.disable_badge_count"
MAX_PUSHERS: Final = 100
"""Pushers of one account."""
MAX_GATEWAYS_SHOWN: Final = 1000
_MAX_APP_ID_CHARS: Final = 64
_MAX_PUSHKEY_BYTES: Final = 512
"""In bytes."""
_MAX_TEXT_CHARS: Final = 512
_MAX_DATA_BYTES: Final = 16 * 1024
_EMAIL_MEDIUM: Final = "email"


class PusherRequest(msgspec.Struct, frozen=True):
    """The request of a client to set a pusher. A field is None if the client did not send it."""

    kind: str
    app_id: str
    pushkey: str
    app_display_name: str | None
    device_display_name: str | None
    profile_tag: str | None
    lang: str | None
    data: Mapping[str, Any] | None
    enabled: bool | None
    no_counts: bool
    append: bool


class Pushers:
    """Lists, sets and removes the pushers of users."""

    def __init__(
        self,
        *,
        now_ms: Callable[[], int],
        database: Database,
        store: PusherStore,
        threepids: ThreepidStore,
        by_email: bool,
        plain_http: bool,
    ) -> None:
        """`by_email`: the server sends e-mails about missed messages. `plain_http`: gateways may
        have http:// addresses."""
        self._now_ms = now_ms
        self._database = database
        self._store = store
        self._threepids = threepids
        self._by_email = by_email
        self._plain_http = plain_http

    async def get(self, user_id: UserID) -> Sequence[Mapping[str, Any]]:
        """Return all pushers of a user in the form of the client API."""
        return [
            _as_json(row) for row in (await self._store.get_pushers([user_id])).get(user_id, [])
        ]

    async def get_rows(self, user_id: UserID) -> Sequence[PusherRow]:
        """Return all pushers of a user with their delivery state, for operators."""
        return (await self._store.get_pushers([user_id])).get(user_id, [])

    async def get_gateways(self) -> Sequence[GatewayRow]:
        """Return the delivery state of the pushers of each gateway, for operators."""
        return await self._store.get_gateways(MAX_GATEWAYS_SHOWN)

    async def do_set(self, caller: Requester, request: PusherRequest) -> None:
        """Add a pusher, or change the one with that app ID and pushkey.

        Raises `InvalidParam`, `MissingParam`, and `Forbidden` for a session without a device and
        for too many pushers.
        """
        row = self._checked(caller, request)
        await self._database.write("set_pusher", self._set, row, request)

    async def do_remove(self, user_id: UserID, app_id: str, pushkey: str) -> None:
        """Remove a pusher. A missing pusher is not an error."""
        if app_id == EMAIL_APP:
            pushkey = pushkey.strip().lower()
        await self._database.write(
            "remove_pusher", self._store.remove_pusher, user_id, app_id, pushkey
        )

    def add_email_pusher(
        self, txn: WriteTransaction, user_id: UserID, address: str, languages: str
    ) -> None:
        """Add an e-mail pusher, in the write that creates the account. `languages`: those of the
        user, as in `Accept-Language`."""
        position = txn.next_position()
        data = b"{}"
        row = PusherRow(
            pusher_nid=txn.allocate("pusher"),
            user_id=user_id,
            app_id=EMAIL_APP,
            pushkey=address,
            kind=EMAIL,
            app_display_name="Email Notifications",
            device_display_name=address,
            profile_tag=None,
            lang=languages[:_MAX_TEXT_CHARS],
            data=data,
            gateway="",
            device_id=None,
            enabled=True,
            no_counts=False,
            set_ts=self._now_ms(),
            position=position,
        )
        self._store.set_pusher(txn, row)

    def _checked(self, caller: Requester, request: PusherRequest) -> PusherRow:
        fields = {
            "app_display_name": request.app_display_name,
            "device_display_name": request.device_display_name,
            "lang": request.lang,
            "data": request.data,
        }
        missing = [name for name, value in fields.items() if value is None]
        if missing:
            raise MissingParam("Missing parameters: " + ", ".join(missing))
        assert request.data is not None
        check_key(request.app_id, request.pushkey)
        texts = (
            request.app_display_name or "",
            request.device_display_name or "",
            request.lang or "",
            request.profile_tag or "",
        )
        if any(len(text) > _MAX_TEXT_CHARS for text in texts):
            raise InvalidParam(
                f"Names, lang and profile_tag have at most {_MAX_TEXT_CHARS} characters"
            )
        data = msgspec.json.encode(request.data)
        if len(data) > _MAX_DATA_BYTES:
            raise InvalidParam(f"data has at most {_MAX_DATA_BYTES} bytes")
        pushkey, device_id = request.pushkey, caller.device_id
        if request.kind == HTTP:
            check_http_data(request.data, plain_http=self._plain_http)
            if device_id is None:
                raise Forbidden("A pusher belongs to a device, and this session has none")
        elif request.kind == EMAIL:
            pushkey, device_id = self._checked_address(request), None
        else:
            raise InvalidParam("The kinds of pushers are http and email")
        return PusherRow(
            pusher_nid=0,
            user_id=caller.user_id,
            app_id=request.app_id,
            pushkey=pushkey,
            kind=request.kind,
            app_display_name=request.app_display_name or "",
            device_display_name=request.device_display_name or "",
            profile_tag=request.profile_tag,
            lang=request.lang or "",
            data=data,
            gateway=origin_of(request.data["url"]) if request.kind == HTTP else "",
            device_id=device_id,
            enabled=request.enabled is not False,
            no_counts=request.no_counts or request.data.get(NO_COUNTS) is True,
            set_ts=self._now_ms(),
            position=0,
        )

    def _checked_address(self, request: PusherRequest) -> str:
        if not self._by_email:
            raise InvalidParam("This server sends no notifications by e-mail")
        if request.app_id != EMAIL_APP:
            raise InvalidParam(f"The app_id of a pusher by e-mail is {EMAIL_APP}")
        brand = None if request.data is None else request.data.get("brand")
        if brand is not None and (
            not isinstance(brand, str) or len(brand) > 100 or not brand.isprintable()
        ):
            raise InvalidParam("data.brand is a name of at most 100 characters")
        return parse_email_address(request.pushkey)

    def _set(self, txn: WriteTransaction, row: PusherRow, request: PusherRequest) -> None:
        if (
            row.kind == EMAIL
            and self._threepids.get_owner_in(txn, _EMAIL_MEDIUM, row.pushkey) != row.user_id
        ):
            raise InvalidParam("This e-mail address does not belong to your account; add it first")
        same = self._store.get_by_key(txn, row.app_id, row.pushkey)
        if not request.append:
            for user_id in same:
                if user_id != row.user_id:
                    self._store.remove_pusher(txn, user_id, row.app_id, row.pushkey)
        old = same.get(row.user_id)
        if old is None:
            self._check_limit(txn, row.user_id)
            self._store.set_pusher(
                txn, _starting_now(txn, replace(row, pusher_nid=txn.allocate("pusher")))
            )
            return
        if request.enabled is not None and old.kind == row.kind:
            # switching the pusher of another session does not move it to this one
            row = replace(row, device_id=old.device_id)
        row = replace(row, pusher_nid=old.pusher_nid)
        if old.kind != row.kind:
            self._store.set_pusher(txn, _starting_now(txn, row))
        elif old.enabled != row.enabled:
            # its app still shows the badge that was sent before it was disabled
            self._store.set_pusher(
                txn, _starting_now(txn, replace(row, last_success_ts=old.last_success_ts))
            )
        elif old.data != row.data:
            self._store.set_pusher(txn, replace(row, position=old.position, due_ts=old.due_ts))
        else:
            self._store.set_pusher(
                txn,
                replace(
                    row,
                    position=old.position,
                    failing_since_ts=old.failing_since_ts,
                    last_attempt_ts=old.last_attempt_ts,
                    backoff_ms=old.backoff_ms,
                    last_success_ts=old.last_success_ts,
                    due_ts=old.due_ts,
                    error=old.error,
                ),
            )

    def _check_limit(self, txn: Transaction, user_id: str) -> None:
        if len(self._store.get_pushers_in(txn, [user_id]).get(user_id, ())) >= MAX_PUSHERS:
            raise Forbidden(f"An account has at most {MAX_PUSHERS} pushers")


def origin_of(url: str) -> str:
    """Return scheme, host and port of a gateway address."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.lower()}"


def check_key(app_id: str, pushkey: str) -> None:
    """Check an app ID and a pushkey. Raises `InvalidParam`."""
    if not 1 <= len(app_id) <= _MAX_APP_ID_CHARS:
        raise InvalidParam(f"app_id has 1 to {_MAX_APP_ID_CHARS} characters")
    if not 1 <= len(pushkey.encode("utf-8", "surrogatepass")) <= _MAX_PUSHKEY_BYTES:
        raise InvalidParam(f"pushkey has 1 to {_MAX_PUSHKEY_BYTES} bytes")


def check_http_data(data: Mapping[str, Any], *, plain_http: bool) -> None:
    """Check the data of an HTTP pusher. Raises `InvalidParam`, and `MissingParam` if the address is
    missing."""
    url = data.get("url")
    if url is None:
        raise MissingParam("data.url is the address of the push gateway")
    try:
        parts = urlsplit(url) if isinstance(url, str) else urlsplit("")
        host, _ = parts.hostname, parts.port
    except ValueError:
        host = None
    if (
        not host
        or not url.isascii()
        or not url.isprintable()
        or " " in url
        or parts.username is not None
    ):
        raise InvalidParam("data.url must be the address of a push gateway")
    if parts.scheme not in (("https", "http") if plain_http else ("https",)):
        raise InvalidParam("data.url must begin with https://")
    if parts.path != NOTIFY_PATH or parts.fragment:
        raise InvalidParam(f"data.url must have the path {NOTIFY_PATH}")
    if data.get("format") not in (None, EVENT_ID_ONLY):
        raise InvalidParam(f"data.format is {EVENT_ID_ONLY}, or is left out")


def _starting_now(txn: WriteTransaction, row: PusherRow) -> PusherRow:
    """Return the pusher with a position from which on it pushes: the current one."""
    return replace(row, position=txn.next_position())


def _as_json(row: PusherRow) -> Mapping[str, Any]:
    form: dict[str, Any] = {
        "pushkey": row.pushkey,
        "kind": row.kind,
        "app_id": row.app_id,
        "app_display_name": row.app_display_name,
        "device_display_name": row.device_display_name,
        "lang": row.lang,
        "data": msgspec.Raw(row.data),
        "org.matrix.msc3881.enabled": row.enabled,
    }
    if row.profile_tag is not None:
        form["profile_tag"] = row.profile_tag
    if row.device_id is not None:
        form["org.matrix.msc3881.device_id"] = row.device_id
    return form
