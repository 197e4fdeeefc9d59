"""The proofs that user-interactive authentication takes here: nothing, the account's password, a
registration token, a captcha, an e-mail address, a telephone number, agreement to the terms, the
word of an identity provider.

spec: client-server-api#authentication-types
"""

from collections.abc import Mapping
from typing import Final

import msgspec
from twisted.internet.interfaces import IReactorTime

from federation.protocol.errors import Forbidden, MissingParam
from homeserver.services.login.captcha import Captcha
from homeserver.services.login.password_login import SignIn, parse_identifier
from homeserver.services.login.uia import AuthData, Operation
from homeserver.services.terms.policies import Policies
from homeserver.services.threepids.validation import (
    PASSWORD_RESET,
    REGISTER,
    Proof,
    ThreepidValidation,
)
from storage.accounts.registration_tokens import RegistrationTokenStore
from storage.engine.transaction import WriteTransaction

DUMMY: Final = "m.login.dummy"
PASSWORD: Final = "m.login.password"
EMAIL_IDENTITY: Final = "m.login.email.identity"
MSISDN_IDENTITY: Final = "m.login.msisdn"
SSO: Final = "m.login.sso"
TERMS: Final = "m.login.terms"
REGISTRATION_TOKEN: Final = "m.login.registration_token"
RECAPTCHA: Final = "m.login.recaptcha"

THREEPID_PURPOSES: Final = {"POST register": REGISTER, "POST account/password": PASSWORD_RESET}
"""For which operations an address or a number is a proof, and the purpose of the message then."""


class WrongRegistrationToken(Forbidden):
    default_text = "This registration token is not valid"


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
    """The password of the user who asks, and of nobody else. spec:
    client-server-api#password-based"""

    name = PASSWORD

    def __init__(self, sign_in: SignIn) -> None:
        self._sign_in = sign_in

    def params(self) -> Mapping[str, object] | None:
        return None

    async def check(self, auth: AuthData, operation: Operation) -> str:
        password = auth.get("password")
        if not isinstance(password, str):
            raise MissingParam("auth.password is missing")
        user_id = operation.user_id
        # Nobody else's password is tried, lest somebody who is signed in guess those of others
        # here.
        if user_id is None or not await self._sign_in.is_name_of(parse_identifier(auth), user_id):
            raise Forbidden("Confirm this with your own user name and password")
        account = await self._sign_in.check_password(user_id, password, operation.address)
        if account.user_id != user_id:
            raise Forbidden("Confirm this with your own user name and password")
        return ""

    def add(self, txn: WriteTransaction, result: str) -> None:
        """Holds nothing."""

    def remove(self, txn: WriteTransaction, result: str) -> None:
        """Held nothing."""


class ThreepidStage:
    """A confirmed e-mail address or telephone number; what is kept is which.

    spec: client-server-api#email-based-identity--homeserver,
    client-server-api#phone-numbermsisdn-based-identity--homeserver
    """

    def __init__(self, name: str, medium: str, validations: ThreepidValidation) -> None:
        self.name = name
        self._medium = medium
        self._validations = validations

    def params(self) -> Mapping[str, object] | None:
        return None

    async def check(self, auth: AuthData, operation: Operation) -> str:
        purpose = THREEPID_PURPOSES.get(operation.name)
        if purpose is None:
            raise Forbidden("An address or a number does not confirm this")
        # `threepidCreds` is what some clients of today still send
        creds = auth.get("threepid_creds", auth.get("threepidCreds"))
        return msgspec.json.encode(
            await self._validations.check_confirmed(purpose, creds, self._medium)
        ).decode()

    def add(self, txn: WriteTransaction, result: str) -> None:
        self._validations.use(txn, parse_proof(result))

    def remove(self, txn: WriteTransaction, result: str) -> None:
        """A confirmation is not given back: the person asks for another message."""


def parse_proof(result: str) -> Proof:
    """What `ThreepidStage` keeps."""
    return msgspec.json.decode(result, type=Proof)


class RegistrationTokenStage:
    """A token from an administrator; a use is held back until the account is there, or the session
    is old.

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
            raise WrongRegistrationToken

    def remove(self, txn: WriteTransaction, result: str) -> None:
        self._tokens.remove_pending(txn, result)


class CaptchaStage:
    """A riddle, solved. spec: client-server-api#google-recaptcha"""

    name = RECAPTCHA

    def __init__(self, captcha: Captcha) -> None:
        self._captcha = captcha

    def params(self) -> Mapping[str, object] | None:
        """With what clients ask for a riddle."""
        return {"public_key": self._captcha.site_key}

    async def check(self, auth: AuthData, operation: Operation) -> str:
        await self._captcha.check(auth.get("response"), operation.address)
        return ""

    def add(self, txn: WriteTransaction, result: str) -> None:
        """Holds nothing: a solution is good once, as whoever made the riddle sees to."""

    def remove(self, txn: WriteTransaction, result: str) -> None:
        """Held nothing."""


class TermsStage:
    """Agreement to the documents that the server has; what is kept is which versions.

    spec: client-server-api#terms-of-service-at-registration
    """

    name = TERMS

    def __init__(self, policies: Policies) -> None:
        self._policies = policies

    def params(self) -> Mapping[str, object] | None:
        return self._policies.params()

    async def check(self, auth: AuthData, operation: Operation) -> str:
        return msgspec.json.encode(self._policies.versions).decode()

    def add(self, txn: WriteTransaction, result: str) -> None:
        """Holds nothing: the account that comes of it has the record."""

    def remove(self, txn: WriteTransaction, result: str) -> None:
        """Held nothing."""


def parse_versions(result: str) -> Mapping[str, str]:
    """What `TermsStage` keeps: versions, by policies."""
    return msgspec.json.decode(result, type=dict[str, str])


class SSOStage:
    """Signing in with the identity provider again, in a browser; `UIA.do_prove` notes that it was
    done.

    spec: client-server-api#sso-during-user-interactive-authentication
    """

    name = SSO

    def params(self) -> Mapping[str, object] | None:
        return None

    async def check(self, auth: AuthData, operation: Operation) -> str:
        raise Forbidden(
            "Sign in on the page of this stage first; then ask again with the session alone"
        )

    def add(self, txn: WriteTransaction, result: str) -> None:
        """Holds nothing."""

    def remove(self, txn: WriteTransaction, result: str) -> None:
        """Held nothing."""
