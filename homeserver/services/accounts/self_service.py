"""The operations of the account page, where users see and change their account, and end sessions.

Laws:
- Irreversible operations, and those that could give someone else access, need a new authentication:
  the password, or a recent sign-in for an account without a password.
- A password change ends all sessions except the browser session that makes it.

spec: client-server-api#oauth-20-account-management
"""

from collections.abc import Callable, Sequence
from typing import Final

import msgspec
from twisted.internet.interfaces import IReactorTime

from federation.protocol.errors import Forbidden, MatrixError, NotFound
from federation.protocol.ids import DeviceID, UserID
from homeserver.services.accounts.accounts import Accounts
from homeserver.services.accounts.deactivation import Deactivation
from homeserver.services.accounts.threepids import Threepids
from homeserver.services.login.account_validity import AccountValidity
from homeserver.services.login.application_passwords import ApplicationPasswords
from homeserver.services.login.browser_sessions import BrowserSession
from homeserver.services.login.password_login import SignIn
from homeserver.services.login.sessions import Sessions
from homeserver.services.oauth.clients import OAuthClient, OAuthClients
from homeserver.services.profiles.profiles import Profiles
from homeserver.services.threepids.validation import EMAIL, MSISDN
from storage.devices.devices import DeviceRow, DeviceStore
from storage.engine.database import Database
from storage.engine.transaction import WriteTransaction
from storage.oauth.oauth import OAuthStore

RECENT_SIGN_IN_MS: Final = 15 * 60 * 1000
"""Maximum age of a sign-in that authenticates the user of an account without password."""


class WrongPassword(Forbidden):
    """The password is wrong."""


class ReauthenticationRequired(MatrixError):
    """The user of an account without password has to sign in again."""


class OwnDevice(msgspec.Struct, frozen=True):
    """A device, and the OAuth 2.0 client that signed in on it, if any."""

    row: DeviceRow
    client: OAuthClient | None

    @property
    def name(self) -> str:
        """The display name of the device or of its client; empty if neither has one."""
        return self.row.display_name or ("" if self.client is None else self.client.name)


class AccountOverview(msgspec.Struct, frozen=True):
    """The content of the account page."""

    display_name: str
    devices: Sequence[OwnDevice]
    addresses: Sequence[str]
    numbers: Sequence[str]
    """Telephone numbers: the digits of E.164."""
    has_password: bool
    expires_ts: int | None
    """The expiry time of the account; None where accounts do not expire."""


class AccountSelfService:
    """Shows and changes a user's own account."""

    # More than ten: it gathers what every topic knows of an account, for one page.
    def __init__(
        self,
        *,
        clock: IReactorTime,
        database: Database,
        accounts: Accounts,
        sign_in: SignIn,
        sessions: Sessions,
        devices: DeviceStore,
        oauth: OAuthStore,
        clients: OAuthClients,
        profiles: Profiles,
        threepids: Threepids,
        deactivation: Deactivation,
        application_passwords: ApplicationPasswords,
        validity: AccountValidity,
    ) -> None:
        self._clock = clock
        self._database = database
        self._accounts = accounts
        self._sign_in = sign_in
        self._sessions = sessions
        self._devices = devices
        self._oauth = oauth
        self._clients = clients
        self._profiles = profiles
        self._threepids = threepids
        self._deactivation = deactivation
        self._programs = application_passwords
        self._validity = validity

    @property
    def has_application_passwords(self) -> bool:
        """Whether application passwords are enabled."""
        return self._programs.enabled

    async def get_overview(self, user_id: UserID) -> AccountOverview:
        """Return the content of the page, with the most recently seen devices first."""
        account = await self._accounts.get_account(user_id)
        rows = (await self._devices.get_devices([user_id])).get(user_id, [])
        threepids = await self._threepids.get_threepids(user_id)
        return AccountOverview(
            display_name=await self._profiles.get_own_name(user_id) or "",
            devices=await self._with_clients(user_id, rows),
            addresses=[row.address for row in threepids if row.medium == EMAIL],
            numbers=[row.address for row in threepids if row.medium == MSISDN],
            has_password=account.password_hash is not None,
            expires_ts=self._validity.effective_expiry(account.expires_ts),
        )

    async def _with_clients(
        self, user_id: UserID, rows: Sequence[DeviceRow]
    ) -> Sequence[OwnDevice]:
        sessions = await self._oauth.get_sessions(user_id)
        ids = {session.client_id for session in sessions.values()}
        clients = {client_id: await self._clients.find(client_id) for client_id in ids}
        ordered = sorted(rows, key=lambda row: row.last_seen_ts or row.created_ts, reverse=True)
        return [
            OwnDevice(
                row,
                clients[sessions[row.device_id].client_id] if row.device_id in sessions else None,
            )
            for row in ordered
        ]

    async def get_device(self, user_id: UserID, device_id: str) -> OwnDevice:
        """Return a device. Raises `NotFound`."""
        row = (
            await self._devices.get_device(user_id, device_id)
            if device_id and "\0" not in device_id
            else None
        )
        if row is None:
            raise NotFound("You have no such device")
        [device] = await self._with_clients(user_id, [row])
        return device

    async def check_authentication(
        self, session: BrowserSession, password: str, address: str
    ) -> None:
        """Check the password, or that the sign-in is recent for an account without password.

        Raises `WrongPassword`, `ReauthenticationRequired`, `LimitExceeded`.
        """
        account = await self._accounts.get_account(session.user_id)
        if account.password_hash is None or not self._sign_in.password_confirmation:
            if session.authenticated_ts < self._clock.seconds() * 1000 - RECENT_SIGN_IN_MS:
                raise ReauthenticationRequired
            return
        try:
            await self._sign_in.check_password(session.user_id, password, address)
        except Forbidden:
            raise WrongPassword from None

    async def do_set_name(self, user_id: UserID, name: str) -> None:
        """Set the display name. Raises `NameNotAllowed`, `Forbidden`, `InvalidParam`."""
        await self._profiles.do_choose_display_name(user_id, name)

    async def do_end_devices(self, user_id: UserID, device_ids: Sequence[str], ip: str) -> None:
        """End the sessions of these devices. `ip`, here and below: the client's IP address."""
        ids = [DeviceID(device_id) for device_id in device_ids]
        await self._database.write(
            "remove_own_devices", self._sessions.remove_devices, user_id, ids, ip
        )

    def remove_sessions(self, txn: WriteTransaction, user_id: UserID, ip: str) -> None:
        """End all sessions, of apps and browsers, in a write."""
        self._sessions.remove_sessions(txn, user_id, None, ip)

    async def do_set_password(
        self,
        session: BrowserSession,
        new_password: str,
        ip: str,
        end_others: Callable[[WriteTransaction], None],
    ) -> None:
        """Change the password.

        `end_others`: ends all sessions but that of the browser, in the same write. Raises
        `WeakPassword`, `InvalidParam`, and what `check_epoch` raises.
        """
        await self._accounts.do_set_password(
            session.user_id, new_password, ip=ip, epoch=session.epoch, extra_write=end_others
        )

    async def do_deactivate(self, session: BrowserSession, ip: str, *, erase: bool) -> None:
        """Deactivate the account permanently. Raises what `check_epoch` raises."""
        await self._deactivation.do_deactivate(
            session.user_id, erase=erase, ip=ip, epoch=session.epoch
        )
