"""Validation of telephone numbers by a code in a text message.

Laws:
- A code is valid for one purpose, for some minutes and for `MAX_ATTEMPTS` attempts. It is stored as
  a hash.
- Messages cost money: they go to mobile numbers only, with limits per number, per client address
  and per day in total.
- If the operator hides which numbers belong to accounts, neither the response nor the time that it
  takes reveals whether an account has the number. Only the text message to the number does.

spec: client-server-api#adding-account-administrative-contact-information,
identity-service-api#phone-number-associations
"""

import hmac
import re
from collections.abc import Callable, Collection
from typing import Final

import msgspec
import phonenumbers
from msgspec.structs import replace
from twisted.internet.defer import Deferred
from twisted.logger import Logger

from federation.protocol.errors import (
    InvalidParam,
    LimitExceeded,
    SessionExpired,
    ThreepidDenied,
    ThreepidInUse,
    ThreepidMediumNotSupported,
    ThreepidNotFound,
    TokenIncorrect,
)
from federation.protocol.ids import UserID
from homeserver.api.limits import Limit
from homeserver.http.rate_limits import RateLimiter, address_key
from homeserver.observe.metrics import TextMessageMetrics
from homeserver.services.audit.audit import AuditEvent, record_event
from homeserver.services.pages.languages import Language
from homeserver.services.threepids.sms import TextMessageSender
from homeserver.services.threepids.validation import (
    MSISDN,
    PASSWORD_RESET,
    ThreepidValidation,
    check_client_secret,
)
from homeserver.services.tokens.secret_tokens import SecretGenerator, hash_secret, hash_token
from storage.engine.database import Database
from storage.engine.transaction import WriteTransaction
from storage.threepids.sms import TextMessageStore
from storage.threepids.threepids import ThreepidStore

SUBMIT_PATH: Final = "/_mahalla/confirm_number"
MAX_ATTEMPTS: Final = 3
"""Maximum number of attempts for a code."""
_DAY_MS: Final = 24 * 3600 * 1000
_MAX_LENGTH: Final = 64
"""Maximum number of characters of a number as people write it."""
_SID: Final = re.compile(r"[0-9a-zA-Z.=_-]{1,255}")
_MESSAGE_TYPES: Final = (
    phonenumbers.PhoneNumberType.MOBILE,
    phonenumbers.PhoneNumberType.FIXED_LINE_OR_MOBILE,
)
"""The second type: countries whose numbers do not tell mobile from fixed lines."""


class InvalidNumber(InvalidParam):
    """The text is not a telephone number, or the number cannot receive text messages."""

    default_text = "This is not a mobile telephone number with a country code"


class NumberInUse(ThreepidInUse):
    """An account has the number."""

    default_text = "This number already belongs to an account"


class NumberNotFound(ThreepidNotFound):
    """No account has the number."""

    default_text = "No account has this number"


class NumberDenied(ThreepidDenied):
    """The operator does not allow the number."""

    default_text = "This server does not allow this number"


class SentCode(msgspec.Struct, frozen=True):
    """A validation whose code has been sent."""

    sid: str
    number: str
    """The digits of E.164."""


class _Prepared(msgspec.Struct, frozen=True):
    sid: str
    text: str | None
    """The message to send; None: none."""
    token_hash: bytes | None


def parse_phone_number(country: str, number: str) -> phonenumbers.PhoneNumber:
    """Parse a number as people write it.

    `country`: where it is dialled like this, as an ISO 3166-1 alpha-2 code; empty: the number has
    its country code. Raises `InvalidNumber`.
    """
    if len(number) > _MAX_LENGTH:
        raise InvalidNumber
    try:
        parsed = phonenumbers.parse(number, country.upper() or None)
    except phonenumbers.NumberParseException:
        raise InvalidNumber from None
    if not phonenumbers.is_valid_number(parsed):
        raise InvalidNumber
    return parsed


def to_msisdn(number: phonenumbers.PhoneNumber) -> str:
    """Return the canonical form of a number. spec: appendices#pstn-phone-numbers"""
    return phonenumbers.format_number(number, phonenumbers.PhoneNumberFormat.E164).removeprefix("+")


class PhoneValidation:
    """Sends codes and checks them."""

    _log = Logger()

    # More than ten: the last five are options.
    def __init__(
        self,
        *,
        now_ms: Callable[[], int],
        database: Database,
        store: ThreepidStore,
        message_counts: TextMessageStore,
        validations: ThreepidValidation,
        secret_text: SecretGenerator,
        messages: TextMessageSender | None,
        limiter: RateLimiter,
        metrics: TextMessageMetrics,
        purposes: Collection[str],
        server_name: str,
        base_url: str,
        reveals_known: bool,
        daily_limit: int,
    ) -> None:
        """`messages`: None on a server that sends none. `purposes`: purposes that send codes.

        `base_url`: the public URL, for the `submit_url`; empty disables telephone numbers.
        `reveals_known`: whether the API reveals that a number belongs to an account (see
        `do_request_token`). `daily_limit`: the daily maximum of messages.
        """
        self._now_ms = now_ms
        self._database = database
        self._store = store
        self._counts = message_counts
        self._validations = validations
        self._secret_text = secret_text
        self._messages = (
            messages if base_url and messages is not None and messages.is_enabled else None
        )
        self._limiter = limiter
        self._metrics = metrics
        self._purposes = frozenset(purposes)
        self._server_name = server_name
        self._reveals_known = reveals_known
        self._daily_limit = daily_limit
        self.submit_url = f"{base_url.rstrip('/')}{SUBMIT_PATH}"
        """The URL to which clients send the code that the user has entered."""

    @property
    def is_enabled(self) -> bool:
        """Whether users can add telephone numbers."""
        return self._messages is not None

    def supports_purpose(self, purpose: str) -> bool:
        """Return whether this server sends codes for a purpose."""
        return self._messages is not None and purpose in self._purposes

    async def do_request_token(
        self,
        purpose: str,
        country: str,
        number: str,
        client_secret: str,
        send_attempt: int,
        next_link: str | None,
        language: Language,
        ip: str,
        *,
        may_reveal: bool = False,
    ) -> SentCode:
        """Send a code to a number; return its validation. `country`: as in `parse_phone_number`.

        `may_reveal`: the caller may learn whether an account has the number, as the specification
        wants for the API, unless the operator forbids it. Pages never reveal it.

        Raises `ThreepidMediumNotSupported`, `InvalidParam`, `NumberDenied`, `NumberInUse`,
        `NumberNotFound`, `LimitExceeded`, `MessageNotSent`.
        """
        messages = self._messages
        if messages is None or purpose not in self._purposes:
            raise ThreepidMediumNotSupported("This server sends no text messages for this purpose")
        parsed = parse_phone_number(country, number)
        if phonenumbers.number_type(parsed) not in _MESSAGE_TYPES:
            raise InvalidNumber
        address = to_msisdn(parsed)
        check_client_secret(client_secret)
        self._validations.check_next_link(next_link)
        self._limiter.check(Limit.TEXT_MESSAGES_ADDRESS, address_key(ip))
        self._limiter.check(Limit.TEXT_MESSAGES_NUMBER, address)
        if purpose != PASSWORD_RESET:
            try:
                self._validations.check_allowed(MSISDN, address)
            except ThreepidDenied:
                raise NumberDenied from None
        owner = await self._store.get_owner(MSISDN, address)
        may_reveal = may_reveal and self._reveals_known
        if may_reveal:
            if owner is None and purpose == PASSWORD_RESET:
                raise NumberNotFound
            if owner is not None and purpose != PASSWORD_RESET:
                raise NumberInUse
        code = self._secret_text.phone_code()

        def write(txn: WriteTransaction) -> _Prepared:
            row, is_due = self._validations.begin(
                txn, purpose, MSISDN, address, client_secret, send_attempt, next_link
            )
            if not is_due:
                return _Prepared(row.sid, None, None)
            # do not reveal whether the number is known; a message informs its owner
            is_proof = (owner is not None) is (purpose == PASSWORD_RESET)
            token_hash = _hash(row.sid, code) if is_proof else None
            text = (
                self._text(language, purpose, code)
                if is_proof
                else self._already_registered_text(language)
            )
            self._store.set_validation(
                txn,
                replace(
                    row,
                    token_hash=token_hash,
                    created_ts=self._now_ms(),
                    validated_ts=None,
                    attempts=0,
                ),
            )
            # also where none is sent: the daily limit must not reveal known numbers
            self._count(txn)
            if purpose == PASSWORD_RESET:
                if owner is None:
                    return _Prepared(row.sid, None, None)
                record_event(
                    txn,
                    UserID(owner),
                    AuditEvent.PASSWORD_RESET_ASKED,
                    self._now_ms(),
                    ip=ip,
                    detail=address,
                )
            return _Prepared(row.sid, text, token_hash)

        prepared = await self._database.write("request_phone_code", write)
        if prepared.text is not None:
            sending = Deferred.fromCoroutine(self._send(messages, address, prepared))
            if may_reveal or purpose != PASSWORD_RESET:
                # a password reset sends messages to known numbers only: a failure would reveal them
                await sending
            else:
                sending.addErrback(
                    lambda failure: self._log.failure("a text message was not sent", failure)
                )
        return SentCode(prepared.sid, address)

    async def do_submit(self, sid: str, client_secret: str, code: str) -> None:
        """Validate the number if the code is right.

        Raises `InvalidParam`, `SessionExpired`, `TokenIncorrect`.
        """
        check_client_secret(client_secret)
        if not _SID.fullmatch(sid):
            raise InvalidParam("sid must have 1 to 255 letters, digits and .=_-")
        typed = _hash(sid, "".join(code.split()))

        def write(txn: WriteTransaction) -> bool | None:
            oldest = self._validations.expired_before(MSISDN)
            row = self._store.count_attempt(
                txn, sid, hash_secret(client_secret), MSISDN, MAX_ATTEMPTS, oldest
            )
            if row is None:
                return None
            if row.token_hash is None or not hmac.compare_digest(row.token_hash, typed):
                return False
            return self._store.set_validated_in(txn, sid, typed, self._now_ms())

        is_correct = await self._database.write("submit_phone_code", write)
        if is_correct is None:
            raise SessionExpired
        if not is_correct:
            raise TokenIncorrect

    async def _send(self, messages: TextMessageSender, address: str, prepared: _Prepared) -> None:
        assert prepared.text is not None
        try:
            await messages.send(address, prepared.text)
            self._metrics.count("sent")
        except Exception:
            # after any failure, a repeated request with the same `send_attempt` must send again
            self._metrics.count("failed")
            await self._database.write(
                "remove_unsent_phone_code",
                self._store.remove_unsent,
                prepared.sid,
                prepared.token_hash,
            )
            raise

    def _count(self, txn: WriteTransaction) -> None:
        now = self._now_ms()
        day = now // _DAY_MS
        if not self._counts.count_message(txn, day, self._daily_limit):
            self._metrics.count("refused")
            self._log.error(
                "the daily limit of text messages is reached (`sms_gateway.max_per_day`)"
            )
            raise LimitExceeded(retry_after_ms=(day + 1) * _DAY_MS - now)

    def _text(self, language: Language, purpose: str, code: str) -> str:
        _ = language.gettext
        fields = {"code": code, "server": self._server_name}
        if purpose == PASSWORD_RESET:
            return (
                _("%(code)s is your code for a new password on %(server)s. Do not share it.")
                % fields
            )
        return _("%(code)s is your code for %(server)s. Do not share it.") % fields

    def _already_registered_text(self, language: Language) -> str:
        _ = language.gettext
        return _(
            "This number already belongs to an account on %(server)s."
            " If you did not request this, do nothing."
        ) % {"server": self._server_name}


def _hash(sid: str, code: str) -> bytes:
    return hash_token(f"{sid} {code}")
