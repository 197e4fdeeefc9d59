"""OpenID tokens: prove a user's identity to other services. A token is valid for an hour, and
cannot be used as an access token.

spec: client-server-api#openid, server-server-api#openid
"""

from typing import Final

from twisted.internet.interfaces import IReactorTime

from federation.protocol.errors import Forbidden, UnknownToken
from federation.protocol.ids import ServerName, UserID
from homeserver.api.requester import Requester
from homeserver.services.login.account_validity import AccountValidity
from homeserver.services.tokens.secret_tokens import SecretGenerator, hash_token
from storage.accounts.accounts import AccountStore
from storage.engine.database import Database
from storage.engine.transaction import WriteTransaction
from storage.login.openid_tokens import OpenIDTokenStore

LIFETIME_SECONDS: Final = 3600
"""Seconds."""


class OpenID:
    """Issues OpenID tokens and looks up their owners."""

    def __init__(
        self,
        *,
        clock: IReactorTime,
        database: Database,
        store: OpenIDTokenStore,
        accounts: AccountStore,
        secret_text: SecretGenerator,
        server_name: ServerName,
        validity: AccountValidity,
    ) -> None:
        self._clock = clock
        self._validity = validity
        self._database = database
        self._store = store
        self._accounts = accounts
        self._secret_text = secret_text
        self._server_name = server_name

    async def do_request_token(self, caller: Requester, user_id: UserID) -> dict[str, object]:
        """Issue a token; return the response body. Raises `Forbidden` for another user."""
        if caller.user_id != user_id:
            raise Forbidden("You can only request an OpenID token for yourself")
        token = self._secret_text.openid_token()
        expires_ts = self._now_ms() + LIFETIME_SECONDS * 1000

        def write(txn: WriteTransaction) -> None:
            self._store.add_token(txn, hash_token(token), user_id, expires_ts)

        await self._database.write("add_openid_token", write)
        return {
            "access_token": token,
            "token_type": "Bearer",
            "matrix_server_name": self._server_name,
            "expires_in": LIFETIME_SECONDS,
        }

    async def get_user(self, token: str) -> UserID:
        """Return the owner of a token. Raises `UnknownToken`, also for an unusable account."""
        user_id = await self._store.get_user(hash_token(token), self._now_ms())
        account = (
            (await self._accounts.get_accounts([user_id])).get(user_id)
            if user_id is not None
            else None
        )
        if (
            account is None
            or account.deactivated_ts is not None
            or account.locked
            or self._validity.is_expired(account.expires_ts)
        ):
            raise UnknownToken("The token is unknown or has expired")
        return UserID(account.user_id)

    async def do_delete_expired(self, limit: int) -> int:
        """Delete up to `limit` expired tokens; return the number."""
        return await self._store.remove_expired(self._now_ms(), limit)

    def _now_ms(self) -> int:
        return int(self._clock.seconds() * 1000)
