"""Signing in with a token that another program of the institution has signed, such as its intranet.

Laws:
- One algorithm is believed, that of the configuration; a token that says who and until when is
  checked for both.
- The claim of the configuration is the local part; the program decides who that is, so it is
  trusted with every account.

spec: no part of the specification; the type `org.matrix.login.jwt` is what clients know from
Synapse
"""

from collections.abc import Mapping
from math import isfinite
from typing import Any, Final

from joserfc import jwt
from joserfc.errors import JoseError
from joserfc.jwk import ECKey, OctKey, OKPKey, RSAKey
from twisted.internet.interfaces import IReactorTime

from federation.protocol.errors import Forbidden
from federation.protocol.ids import DeviceID, ServerName, UserID, parse_new_user_id
from homeserver.api.limits import Limit
from homeserver.config.upstream import JWT
from homeserver.http.rate_limits import RateLimiter, address_key
from homeserver.services.accounts.registration import Registration, Wish
from homeserver.services.login.password_login import SignIn
from homeserver.services.login.sessions import NewSession, Sessions
from homeserver.services.upstream.identity import clean_name
from storage.accounts.accounts import AccountStore
from storage.engine.transaction import WriteTransaction

LOGIN_TYPE: Final = "org.matrix.login.jwt"
LONGEST_TOKEN: Final = 16 * 1024
LEEWAY: Final = 60


def read_key(secret: str, algorithm: str) -> OctKey | RSAKey | ECKey | OKPKey:
    """The key that tokens are checked with. Raises `ValueError` where it does not fit the
    algorithm."""
    kinds: Mapping[str, type[OctKey] | type[RSAKey] | type[ECKey] | type[OKPKey]] = {
        "HS": OctKey,
        "RS": RSAKey,
        "PS": RSAKey,
        "ES": ECKey,
        "Ed": OKPKey,
    }
    kind = kinds.get(algorithm[:2])
    if kind is None:
        raise ValueError(f"{algorithm} is no algorithm that tokens are signed with here")
    try:
        return kind.import_key(secret)
    except JoseError as error:
        raise ValueError(str(error)) from error


class JWTSignIn:
    """Takes such tokens. `config`: with a secret and an algorithm, if it is enabled."""

    def __init__(
        self,
        clock: IReactorTime,
        account_store: AccountStore,
        registration: Registration,
        sign_in: SignIn,
        sessions: Sessions,
        limiter: RateLimiter,
        config: JWT,
        *,
        server_name: ServerName,
    ) -> None:
        """Raises `ValueError` for a key that does not fit."""
        self._clock = clock
        self._account_store = account_store
        self._registration = registration
        self._sign_in = sign_in
        self._sessions = sessions
        self._limiter = limiter
        self._config = config
        self._server_name = server_name
        self.is_offered = self._config.enabled
        if self._config.enabled:
            self._algorithm = self._config.algorithm or ""
            self._key = read_key(self._config.secret or "", self._algorithm)

    async def do_sign_in(
        self,
        token: str,
        address: str,
        *,
        device_id: DeviceID | None = None,
        device_name: str | None = None,
        refreshable: bool = False,
    ) -> NewSession:
        """Begin a session; who has no account gets one. Raises `Forbidden`, `LimitExceeded`,
        `UserLocked`, `UserDeactivated`, `ExpiredAccount`, `InvalidUsername`, `Exclusive`."""
        self._limiter.check_only(Limit.LOGIN_FAILED, address_key(address))
        try:
            claims = self._check(token)
        except Forbidden:
            self._limiter.check(Limit.LOGIN_FAILED, address_key(address))
            raise
        subject = claims.get(self._config.subject_claim)
        if not isinstance(subject, str) or not subject:
            raise Forbidden(f"The token has no {self._config.subject_claim}")
        user_id = parse_new_user_id(subject.lower(), self._server_name)
        account = (await self._account_store.get_accounts([user_id])).get(user_id)
        era = 0 if account is None else account.era
        if account is None:
            name = clean_name(claims.get(self._config.display_name_claim or ""))
            await self._registration.do_register_vouched(
                Wish(username=subject, display_name=name), _nothing_more
            )
            await self._sign_in.check_allowed(user_id, "jwt", address)
        else:
            await self._sign_in.check_usable(account, "jwt", address)
        session = self._sessions.prepare(
            user_id,
            address=address,
            era=era,
            device_id=device_id,
            device_name=device_name,
            refreshable=refreshable,
        )
        await self._sessions.do_begin(session)
        return session

    def _check(self, token: str) -> Mapping[str, Any]:
        if len(token) > LONGEST_TOKEN:
            raise Forbidden("The token is too long")
        try:
            claims = jwt.decode(token, self._key, algorithms=[self._algorithm]).claims
        except (JoseError, ValueError):
            raise Forbidden("The token is not signed as it should be") from None
        now = self._clock.seconds()
        for name, until in (("exp", True), ("nbf", False), ("iat", False)):
            value = claims.get(name, now)
            # NaN is JSON to the library, and neither before nor after anything
            if isinstance(value, bool) or not isinstance(value, int | float) or not isfinite(value):
                raise Forbidden(f"The token has no {name} that is a time")
            if (value + LEEWAY <= now) if until else (value - LEEWAY > now):
                raise Forbidden("The token is not good at this time")
        if self._config.issuer is not None and claims.get("iss") != self._config.issuer:
            raise Forbidden("The token is of another issuer")
        audience = claims.get("aud")
        audiences = audience if isinstance(audience, list) else [audience]
        if self._config.audiences and not set(self._config.audiences).intersection(
            map(str, audiences)
        ):
            raise Forbidden("The token is for somebody else")
        if audience is not None and not self._config.audiences:
            raise Forbidden("The token is for somebody else")
        return claims


def _nothing_more(txn: WriteTransaction, user_id: UserID) -> None:
    """Such accounts have no link."""
