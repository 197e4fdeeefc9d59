"""The proofs that user-interactive authentication takes here: nothing, the account's password, a registration token.

spec: client-server-api#authentication-types
"""

from collections.abc import Mapping
from typing import Final

from twisted.internet.interfaces import IReactorTime

from federation.protocol.errors import Forbidden, MissingParam
from homeserver.services.sign_in import SignIn, parse_identifier
from homeserver.services.uia import AuthData, Operation
from storage.registration_tokens import RegistrationTokenStore
from storage.transaction import WriteTransaction

DUMMY: Final = "m.login.dummy"
PASSWORD: Final = "m.login.password"
REGISTRATION_TOKEN: Final = "m.login.registration_token"


class DummyStage:
    """Always succeeds. spec: client-server-api#dummy-auth"""

    name = DUMMY

    def params(self) -> Mapping[str, object] | None:
        return None

    async def check(self, auth: AuthData, operation: Operation) -> str:
        return ""

    def add(self, txn: WriteTransaction, result: str) -> None:
        """Holds nothing."""

    def remove(self, txn: WriteTransaction, result: str) -> None:
        """Held nothing."""


class PasswordStage:
    """The password of the user who asks, and of nobody else. spec: client-server-api#password-based"""

    name = PASSWORD

    def __init__(self, sign_in: SignIn) -> None:
        self._sign_in = sign_in

    def params(self) -> Mapping[str, object] | None:
        return None

    async def check(self, auth: AuthData, operation: Operation) -> str:
        password = auth.get("password")
        if not isinstance(password, str):
            raise MissingParam("auth.password is missing")
        account = await self._sign_in.check_password(parse_identifier(auth), password, operation.address)
        if account.user_id != operation.user_id:
            raise Forbidden("This is the password of another user")
        return ""

    def add(self, txn: WriteTransaction, result: str) -> None:
        """Holds nothing."""

    def remove(self, txn: WriteTransaction, result: str) -> None:
        """Held nothing."""


class RegistrationTokenStage:
    """A token from an administrator; a use is held back until the account is there, or the session is old.

    spec: client-server-api#token-authenticated-registration
    """

    name = REGISTRATION_TOKEN

    def __init__(self, clock: IReactorTime, tokens: RegistrationTokenStore) -> None:
        self._clock = clock
        self._tokens = tokens

    def params(self) -> Mapping[str, object] | None:
        return None

    async def check(self, auth: AuthData, operation: Operation) -> str:
        token = auth.get("token")
        if not isinstance(token, str) or not token or "\0" in token:
            raise MissingParam("auth.token is missing")
        return token

    def add(self, txn: WriteTransaction, result: str) -> None:
        if not self._tokens.add_pending(txn, result, int(self._clock.seconds() * 1000)):
            raise Forbidden("This registration token is not valid")

    def remove(self, txn: WriteTransaction, result: str) -> None:
        self._tokens.remove_pending(txn, result)
