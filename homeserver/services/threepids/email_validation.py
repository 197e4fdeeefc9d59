"""Validation of e-mail addresses by a link in an e-mail.

Laws:
- Opening the link does not validate the address, because programs such as virus scanners open links
  in e-mails. The user has to press the button on the page.
- If the operator hides which addresses belong to accounts, the response is the same whether or not
  an account has the address. Only the e-mail to the address reveals this.

spec: client-server-api#adding-account-administrative-contact-information,
identity-service-api#email-associations
"""

import re
from collections.abc import Callable
from typing import Final
from urllib.parse import urlencode

from msgspec.structs import replace

from federation.protocol.errors import (
    InvalidParam,
    ThreepidInUse,
    ThreepidMediumNotSupported,
    ThreepidNotFound,
)
from federation.protocol.ids import UserID
from homeserver.api.limits import Limit
from homeserver.http.rate_limits import RateLimiter, address_key
from homeserver.services.audit.audit import AuditEvent, record_event
from homeserver.services.email.outbox import Outbox
from homeserver.services.pages.external_links import link_text
from homeserver.services.pages.languages import Language
from homeserver.services.threepids.validation import (
    EMAIL,
    PASSWORD_RESET,
    ThreepidValidation,
    check_client_secret,
)
from homeserver.services.tokens.secret_tokens import SecretGenerator, hash_token
from storage.engine.database import Database
from storage.engine.transaction import WriteTransaction
from storage.threepids.threepids import ThreepidStore, ValidationRow

CONFIRM_PATH: Final = "/_mahalla/confirm_email"
_MAX_LENGTH: Final = 254
_ADDRESS: Final = re.compile(
    r"[a-z0-9.!#$%&'*+/=?^_`{|}~-]{1,64}@(?:[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?\.)*[a-z0-9-]{1,63}"
)


class InvalidEmailAddress(InvalidParam):
    default_text = "This is not a valid e-mail address"


def parse_email_address(text: str) -> str:
    """Return an address in its canonical form, in lower case. Raises `InvalidEmailAddress`.

    spec: appendices#e-mail
    """
    address = text.strip().lower()
    if len(address) > _MAX_LENGTH or not _ADDRESS.fullmatch(address) or ".." in address:
        raise InvalidEmailAddress
    return address


class EmailValidation:
    """Sends validation e-mails and accepts their links."""

    def __init__(
        self,
        *,
        now_ms: Callable[[], int],
        database: Database,
        store: ThreepidStore,
        validations: ThreepidValidation,
        secret_text: SecretGenerator,
        outbox: Outbox | None,
        limiter: RateLimiter,
        base_url: str,
        reveals_known: bool,
    ) -> None:
        """`outbox`: None on a server that sends no e-mail. `reveals_known`: whether the API reveals
        that an address belongs to an account (see `do_request_token`)."""
        self._now_ms = now_ms
        self._database = database
        self._store = store
        self._validations = validations
        self._secret_text = secret_text
        self._outbox = outbox
        self._limiter = limiter
        self._base_url = base_url
        self._reveals_known = reveals_known

    @property
    def is_enabled(self) -> bool:
        """Whether this server sends e-mail."""
        return self._outbox is not None

    async def do_request_token(
        self,
        purpose: str,
        email: str,
        client_secret: str,
        send_attempt: int,
        next_link: str | None,
        language: Language,
        ip: str,
        *,
        may_reveal: bool = False,
    ) -> str:
        """Send a validation e-mail to an address; return the ID of the validation.

        `may_reveal`: the caller may learn whether an account has the address, as the specification
        wants for the API, unless the operator forbids it. Pages never reveal it.

        Raises `InvalidParam`, `ThreepidMediumNotSupported`, `ThreepidDenied`, `ThreepidInUse`,
        `ThreepidNotFound`, `LimitExceeded`.
        """
        if self._outbox is None:
            raise ThreepidMediumNotSupported("This server sends no e-mail")
        address = parse_email_address(email)
        check_client_secret(client_secret)
        self._validations.check_next_link(next_link)
        self._limiter.check(Limit.THREEPID, address_key(ip))
        self._limiter.check(Limit.THREEPID, address)
        if purpose != PASSWORD_RESET:
            self._validations.check_allowed(EMAIL, address)
        owner = await self._store.get_owner(EMAIL, address)
        if may_reveal and self._reveals_known:
            if owner is None and purpose == PASSWORD_RESET:
                raise ThreepidNotFound
            if owner is not None and purpose != PASSWORD_RESET:
                raise ThreepidInUse
        token = self._secret_text.session_id()
        outbox = self._outbox

        def write(txn: WriteTransaction) -> str:
            row, is_due = self._validations.begin(
                txn, purpose, EMAIL, address, client_secret, send_attempt, next_link
            )
            if not is_due:
                return row.sid  # the e-mail is on its way
            if (owner is None) is (purpose == PASSWORD_RESET):
                # do not reveal whether the address is known; an e-mail informs its owner
                self._store.set_validation(txn, replace(row, token_hash=None))
                if owner is not None:
                    outbox.add(txn, language, outbox.renderer.already_registered(language), address)
                return row.sid
            self._store.set_validation(txn, replace(row, token_hash=hash_token(token)))
            if purpose == PASSWORD_RESET and owner is not None:
                record_event(
                    txn,
                    UserID(owner),
                    AuditEvent.PASSWORD_RESET_ASKED,
                    self._now_ms(),
                    ip=ip,
                    detail=address,
                )
            query = urlencode({"sid": row.sid, "token": token})
            link = f"{self._base_url.rstrip('/')}{CONFIRM_PATH}?{query}"
            outbox.add(
                txn, language, outbox.renderer.confirm_address(language, link, purpose), address
            )
            return row.sid

        return await self._database.write("request_threepid_token", write)

    async def get_pending(self, sid: str, token: str) -> ValidationRow | None:
        """Return the validation of a link; None if it has expired or a later e-mail replaced it."""
        row = await self._store.get_validation(sid) if sid and "\0" not in sid else None
        if row is None or row.token_hash != hash_token(token) or self._validations.is_expired(row):
            return None
        return row

    def get_next_link(self, row: ValidationRow) -> tuple[str, str] | None:
        """Return the next link of a validation and its display text; None if there is none.

        The current rules apply, not those at the time of the request.
        """
        if row.next_link is None or not self._validations.allows_next_link(row.next_link):
            return None
        return row.next_link, link_text(row.next_link)

    async def do_validate(self, sid: str, token: str) -> ValidationRow | None:
        """Validate the address; return the validation, or None as `get_pending` does."""
        row = await self.get_pending(sid, token)
        if row is None or not await self._store.set_validated(
            sid, hash_token(token), self._now_ms()
        ):
            return None
        return row
