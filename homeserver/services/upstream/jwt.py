"""Signs in users with JSON Web Tokens from a trusted program, such as an intranet portal.

Laws:
- Only the configured algorithm is accepted. The claims `exp`, `nbf` and `iat` are checked if the
  token has them, and the issuer if the configuration names one.
- If the configuration lists audiences, the token must have one of them. Otherwise a token with an
  audience is refused.
- The configured claim is the local part of the user ID. The signing program chooses its value. So
  the signing program can sign in to every account.

This login is not in the specification; clients know the type `org.matrix.login.jwt` from Synapse.
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
from homeserver.config.upstream import JWTOptions
from homeserver.http.rate_limits import RateLimiter, address_key
from homeserver.services.accounts.registration import Registration, RegistrationRequest
from homeserver.services.login.password_login import SignIn
from homeserver.services.login.sessions import NewSession, Sessions
from homeserver.services.upstream.identity import clean_name
from storage.accounts.accounts import AccountStore
from storage.engine.transaction import WriteTransaction

LOGIN_TYPE: Final = "org.matrix.login.jwt"
MAX_TOKEN_LENGTH: Final = 16 * 1024
LEEWAY: Final = 60


def read_key(secret: str, algorithm: str) -> OctKey | RSAKey | ECKey | OKPKey:
    """Return the key that verifies tokens. Raises `ValueError` if it does not fit the algorithm."""
    kinds: Mapping[str, type[OctKey] | type[RSAKey] | type[ECKey] | type[OKPKey]] = {
        "HS": OctKey,
        "RS": RSAKey,
        "PS": RSAKey,
        "ES": ECKey,
        "Ed": OKPKey,
    }
    kind = kinds.get(algorithm[:2])
    if kind is None:
        raise ValueError(f"{algorithm} is not a supported signature algorithm")
    try:
        return kind.import_key(secret)
    except JoseError as error:
        raise ValueError(str(error)) from error


class JWTSignIn:
    """Checks tokens and begins sessions. `config` has a secret and an algorithm if enabled."""

    def __init__(
        self,
        *,
        clock: IReactorTime,
        account_store: AccountStore,
        registration: Registration,
        sign_in: SignIn,
        sessions: Sessions,
        limiter: RateLimiter,
        config: JWTOptions,
        server_name: ServerName,
    ) -> None:
        """Raises `ValueError` if the key does not fit the algorithm."""
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
        """Begin a session; create the account if there is none. Raises `Forbidden`,
        `LimitExceeded`, `UserLocked`, `UserDeactivated`, `ExpiredAccount`, `InvalidUsername`,
        `Exclusive`."""
        self._limiter.check_without_counting(Limit.LOGIN_FAILED, address_key(address))
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
        epoch = 0 if account is None else account.epoch
        if account is None:
            name = clean_name(claims.get(self._config.display_name_claim or ""))
            await self._registration.do_register_for_provider(
                RegistrationRequest(username=subject, display_name=name), _add_nothing
            )
            await self._sign_in.check_allowed(user_id, "jwt", address)
        else:
            await self._sign_in.check_usable(account, "jwt", address)
        session = self._sessions.prepare(
            user_id,
            address=address,
            epoch=epoch,
            device_id=device_id,
            device_name=device_name,
            refreshable=refreshable,
        )
        await self._sessions.do_begin(session)
        return session

    def _check(self, token: str) -> Mapping[str, Any]:
        if len(token) > MAX_TOKEN_LENGTH:
            raise Forbidden("The token is too long")
        try:
            claims = jwt.decode(token, self._key, algorithms=[self._algorithm]).claims
        except (JoseError, ValueError):
            raise Forbidden("The token has no valid signature") from None
        now = self._clock.seconds()
        for name, until in (("exp", True), ("nbf", False), ("iat", False)):
            value = claims.get(name, now)
            # the library accepts NaN, which compares false with every time
            if isinstance(value, bool) or not isinstance(value, int | float) or not isfinite(value):
                raise Forbidden(f"The {name} of the token is not a time")
            if (value + LEEWAY <= now) if until else (value - LEEWAY > now):
                raise Forbidden("The token has expired or is not valid yet")
        if self._config.issuer is not None and claims.get("iss") != self._config.issuer:
            raise Forbidden("The token is from another issuer")
        audience = claims.get("aud")
        audiences = audience if isinstance(audience, list) else [audience]
        if self._config.audiences and not set(self._config.audiences).intersection(
            map(str, audiences)
        ):
            raise Forbidden("The token is for another audience")
        if audience is not None and not self._config.audiences:
            raise Forbidden("The token is for another audience")
        return claims


def _add_nothing(txn: WriteTransaction, user_id: UserID) -> None:
    """Add no row: accounts of tokens have no link."""
