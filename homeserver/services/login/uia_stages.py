"""The stages of user-interactive authentication: dummy, password, registration token, captcha,
e-mail address, telephone number, terms of service, and single sign-on.

spec: client-server-api#authentication-types
"""

from collections.abc import Mapping
from typing import Final

import msgspec
from twisted.internet.interfaces import IReactorTime

from federation.protocol.errors import Forbidden, MissingParam
from homeserver.services.login.captcha import CaptchaVerifier
from homeserver.services.login.password_login import SignIn, parse_identifier
from homeserver.services.login.uia import AuthData, UIAOperation
from homeserver.services.terms.policies import Policies
from homeserver.services.threepids.validation import (
    PASSWORD_RESET,
    REGISTER,
    ThreepidValidation,
    ValidatedThreepid,
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

THREEPID_OPERATIONS: Final = {"POST register": REGISTER, "POST account/password": PASSWORD_RESET}
"""Operations that a validated address or number can confirm, with the purpose of its message."""


class WrongRegistrationToken(Forbidden):
    default_text = "This registration token is not valid"


class DummyStage:
    """Always succeeds. spec: client-server-api#dummy-auth"""

    name = DUMMY

    def params(self) -> Mapping[str, object] | None:
        return None

    async def check(self, auth: AuthData, operation: UIAOperation) -> str:
        return ""

    def reserve(self, txn: WriteTransaction, result: str) -> None:
        """Reserve nothing."""

    def release(self, txn: WriteTransaction, result: str) -> None:
        """Release nothing: `reserve` reserves nothing."""


class PasswordStage:
    """The password of the calling user, and of no other. spec:
    client-server-api#password-based"""

    name = PASSWORD

    def __init__(self, sign_in: SignIn) -> None:
        self._sign_in = sign_in

    def params(self) -> Mapping[str, object] | None:
        return None

    async def check(self, auth: AuthData, operation: UIAOperation) -> str:
        password = auth.get("password")
        if not isinstance(password, str):
            raise MissingParam("auth.password is missing")
        user_id = operation.user_id
        # Only the caller's own password is tried: otherwise a signed-in user could guess those of
        # others here.
        if user_id is None or not await self._sign_in.is_identifier_of(
            parse_identifier(auth), user_id
        ):
            raise Forbidden("Confirm this with your own user name and password")
        account = await self._sign_in.check_password(user_id, password, operation.address)
        if account.user_id != user_id:
            raise Forbidden("Confirm this with your own user name and password")
        return ""

    def reserve(self, txn: WriteTransaction, result: str) -> None:
        """Reserve nothing."""

    def release(self, txn: WriteTransaction, result: str) -> None:
        """Release nothing: `reserve` reserves nothing."""


class ThreepidStage:
    """A validated e-mail address or telephone number; the result is its `ValidatedThreepid` as
    JSON.

    spec: client-server-api#email-based-identity--homeserver,
    client-server-api#phone-numbermsisdn-based-identity--homeserver
    """

    def __init__(self, *, name: str, medium: str, validations: ThreepidValidation) -> None:
        self.name = name
        self._medium = medium
        self._validations = validations

    def params(self) -> Mapping[str, object] | None:
        return None

    async def check(self, auth: AuthData, operation: UIAOperation) -> str:
        purpose = THREEPID_OPERATIONS.get(operation.name)
        if purpose is None:
            raise Forbidden("An e-mail address or telephone number cannot confirm this operation")
        # some current clients still send `threepidCreds`
        creds = auth.get("threepid_creds", auth.get("threepidCreds"))
        return msgspec.json.encode(
            await self._validations.check_validated(purpose, creds, self._medium)
        ).decode()

    def reserve(self, txn: WriteTransaction, result: str) -> None:
        self._validations.use(txn, parse_proof(result))

    def release(self, txn: WriteTransaction, result: str) -> None:
        """Release nothing: a used validation stays used; the user requests a new message."""


def parse_proof(result: str) -> ValidatedThreepid:
    """Parse the result of `ThreepidStage`."""
    return msgspec.json.decode(result, type=ValidatedThreepid)


class RegistrationTokenStage:
    """A registration token; one use is reserved until the account exists or the session expires.

    spec: client-server-api#token-authenticated-registration
    """

    name = REGISTRATION_TOKEN

    def __init__(self, *, clock: IReactorTime, tokens: RegistrationTokenStore) -> None:
        self._clock = clock
        self._tokens = tokens

    def params(self) -> Mapping[str, object] | None:
        return None

    async def check(self, auth: AuthData, operation: UIAOperation) -> str:
        token = auth.get("token")
        if not isinstance(token, str) or not token or "\0" in token:
            raise MissingParam("auth.token is missing")
        return token

    def reserve(self, txn: WriteTransaction, result: str) -> None:
        if not self._tokens.add_pending(txn, result, int(self._clock.seconds() * 1000)):
            raise WrongRegistrationToken

    def release(self, txn: WriteTransaction, result: str) -> None:
        self._tokens.remove_pending(txn, result)


class CaptchaStage:
    """A solved captcha. spec: client-server-api#google-recaptcha"""

    name = RECAPTCHA

    def __init__(self, captcha: CaptchaVerifier) -> None:
        self._captcha = captcha

    def params(self) -> Mapping[str, object] | None:
        """Return the public key with which clients request a captcha."""
        return {"public_key": self._captcha.site_key}

    async def check(self, auth: AuthData, operation: UIAOperation) -> str:
        await self._captcha.check_solution(auth.get("response"), operation.address)
        return ""

    def reserve(self, txn: WriteTransaction, result: str) -> None:
        """Reserve nothing: the captcha service accepts each solution once."""

    def release(self, txn: WriteTransaction, result: str) -> None:
        """Release nothing: `reserve` reserves nothing."""


class TermsStage:
    """Acceptance of the server's policies; the result holds their versions as JSON.

    spec: client-server-api#terms-of-service-at-registration
    """

    name = TERMS

    def __init__(self, policies: Policies) -> None:
        self._policies = policies

    def params(self) -> Mapping[str, object] | None:
        return self._policies.params()

    async def check(self, auth: AuthData, operation: UIAOperation) -> str:
        return msgspec.json.encode(self._policies.versions).decode()

    def reserve(self, txn: WriteTransaction, result: str) -> None:
        """Reserve nothing: the consents are stored with the new account."""

    def release(self, txn: WriteTransaction, result: str) -> None:
        """Release nothing: `reserve` reserves nothing."""


def parse_policy_versions(result: str) -> Mapping[str, str]:
    """Parse the result of `TermsStage`: the version of each policy, by policy ID."""
    return msgspec.json.decode(result, type=dict[str, str])


class SSOStage:
    """A repeated sign-in at the identity provider, in a browser; `UIA.do_complete_stage` completes
    it.

    spec: client-server-api#sso-during-user-interactive-authentication
    """

    name = SSO

    def params(self) -> Mapping[str, object] | None:
        return None

    async def check(self, auth: AuthData, operation: UIAOperation) -> str:
        raise Forbidden(
            "Sign in on the fallback page of this stage first, then retry with only the session"
        )

    def reserve(self, txn: WriteTransaction, result: str) -> None:
        """Reserve nothing."""

    def release(self, txn: WriteTransaction, result: str) -> None:
        """Release nothing: `reserve` reserves nothing."""
