"""Showing that an e-mail address is one's own, by a letter to it.

Laws:
- An address counts once somebody has opened the link in a letter to it, and only for the purpose that the letter named.
- Opening the page confirms nothing, since programs open links in letters; pressing the button on it does.
- A confirmation is good once, within `lifetime`.
- Where the operator does not want it told whose address is known, a letter to the address says it instead.

spec: client-server-api#adding-account-administrative-contact-information, identity-service-api#email-associations
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Final
from urllib.parse import urlencode

import msgspec
from msgspec.structs import replace

from federation.protocol.endpoint import Limit
from federation.protocol.errors import (
    InvalidParam,
    ThreepidAuthFailed,
    ThreepidDenied,
    ThreepidInUse,
    ThreepidMediumNotSupported,
    ThreepidNotFound,
)
from homeserver.http.rate_limits import RateLimiter, address_key
from homeserver.services.languages import Language
from homeserver.services.mail.outbox import Outbox
from homeserver.services.secret_text import SecretText, hash_token
from storage.database import Database
from storage.threepids import ThreepidStore, ValidationRow
from storage.transaction import Transaction, WriteTransaction

EMAIL: Final = "email"
REGISTER: Final = "register"
ADD: Final = "add"
PASSWORD_RESET: Final = "password"
CONFIRM_PATH: Final = "/_mahalla/confirm_email"
_LONGEST: Final = 254
_ADDRESS: Final = re.compile(
    r"[a-z0-9.!#$%&'*+/=?^_`{|}~-]{1,64}@(?:[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?\.)*[a-z0-9-]{1,63}"
)
_CLIENT_SECRET: Final = re.compile(r"[0-9a-zA-Z.=_-]{1,255}")


class Proof(msgspec.Struct, frozen=True):
    """What is kept of a confirmation that was used."""

    sid: str
    address: str
    validated_ts: int


def parse_email_address(text: str) -> str:
    """An address as it is compared: in small letters. Raises `InvalidParam`. spec: appendices#e-mail-addresses"""
    address = text.strip().lower()
    if len(address) > _LONGEST or not _ADDRESS.fullmatch(address) or ".." in address:
        raise InvalidParam("This is not a valid e-mail address")
    return address


class EmailValidation:
    """Writes letters, and takes what they prove. `outbox` is None on a server that sends no mail."""

    def __init__(
        self,
        now_ms: Callable[[], int],
        database: Database,
        store: ThreepidStore,
        secret_text: SecretText,
        outbox: Outbox | None,
        limiter: RateLimiter,
        *,
        base_url: str,
        allowed: Sequence[re.Pattern[str]] | None,
        known_is_told: bool,
        lifetime_ms: int,
    ) -> None:
        """`allowed`: patterns, one of which an address must match; None: any will do.
        `known_is_told`: whoever asks learns whether an address belongs to an account."""
        self._now_ms = now_ms
        self._database = database
        self._store = store
        self._secret_text = secret_text
        self._outbox = outbox
        self._limiter = limiter
        self._base_url = base_url
        self._allowed = allowed
        self._known_is_told = known_is_told
        self._lifetime_ms = lifetime_ms

    @property
    def is_possible(self) -> bool:
        """Whether this server sends letters."""
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
    ) -> str:
        """Send a letter to an address; the id of the validation.

        Raises `InvalidParam`, `ThreepidMediumNotSupported`, `ThreepidDenied`, `ThreepidInUse`, `ThreepidNotFound`,
        `LimitExceeded`.
        """
        if self._outbox is None:
            raise ThreepidMediumNotSupported("This server sends no e-mail")
        address = parse_email_address(email)
        if not _CLIENT_SECRET.fullmatch(client_secret):
            raise InvalidParam("client_secret has 1 to 255 letters, digits and .=_-")
        if next_link is not None and (len(next_link) > 2000 or not next_link.startswith(("http://", "https://"))):
            raise InvalidParam("next_link must be an address of the web")
        self._limiter.check(Limit.THREEPID, address_key(ip))
        self._limiter.check(Limit.THREEPID, address)
        if purpose != PASSWORD_RESET:
            self._check_allowed(address)
        owner = await self._store.get_owner(EMAIL, address)
        if self._known_is_told:
            if owner is None and purpose == PASSWORD_RESET:
                raise ThreepidNotFound
            if owner is not None and purpose != PASSWORD_RESET:
                raise ThreepidInUse
        token = self._secret_text.session_id()
        outbox = self._outbox

        def write(txn: WriteTransaction) -> str:
            now = self._now_ms()
            known = self._store.get_validation_of_client(txn, purpose, EMAIL, address, client_secret)
            if known is not None and known.created_ts > now - self._lifetime_ms:
                if send_attempt <= known.send_attempt:
                    return known.sid  # the request is repeated: the letter is under way
                row = replace(known, token_hash=hash_token(token), send_attempt=send_attempt, next_link=next_link)
            else:
                if known is not None:
                    self._store.remove_validation(txn, known.sid)
                row = ValidationRow(
                    self._secret_text.session_id(),
                    purpose,
                    EMAIL,
                    address,
                    client_secret,
                    hash_token(token),
                    send_attempt,
                    next_link,
                    now,
                )
            if (owner is None) is (purpose == PASSWORD_RESET):
                # nobody learns by this request whether the address is known: its owner does, by a letter
                self._store.set_validation(txn, replace(row, token_hash=None))
                if owner is not None:
                    outbox.add(txn, language, outbox.letters.already_registered(language), address)
                return row.sid
            self._store.set_validation(txn, row)
            link = f"{self._base_url.rstrip('/')}{CONFIRM_PATH}?{urlencode({'sid': row.sid, 'token': token})}"
            outbox.add(txn, language, outbox.letters.confirm_address(language, link, purpose), address)
            return row.sid

        return await self._database.write("request_threepid_token", write)

    async def find(self, purpose: str, email: str, client_secret: str) -> str | None:
        """The id of the validation for which a letter was sent so; None where there is none."""
        address = email.strip().lower()

        def read(txn: Transaction) -> str | None:
            row = self._store.get_validation_of_client(txn, purpose, EMAIL, address, client_secret)
            return None if row is None else row.sid

        return await self._database.read("find_validation", read)

    async def get_pending(self, sid: str, token: str) -> ValidationRow | None:
        """The validation that a letter's link is for, unless it has grown old or a later letter took its place."""
        row = await self._store.get_validation(sid) if sid and "\0" not in sid else None
        if row is None or row.token_hash != hash_token(token) or self._is_old(row):
            return None
        return row

    async def do_confirm(self, sid: str, token: str) -> ValidationRow | None:
        """The address is theirs who hold the letter. The validation; None as for `get_pending`."""
        row = await self.get_pending(sid, token)
        if row is None or not await self._store.set_validated(sid, hash_token(token), self._now_ms()):
            return None
        return row

    async def check_confirmed(self, purpose: str, creds: object) -> Proof:
        """What a client's credentials prove, for a purpose. Raises `ThreepidAuthFailed`, `InvalidParam`."""
        if not isinstance(creds, Mapping):
            raise InvalidParam("threepid_creds must be an object")
        sid, client_secret = creds.get("sid"), creds.get("client_secret")
        if not isinstance(sid, str) or not isinstance(client_secret, str):
            raise InvalidParam("threepid_creds needs sid and client_secret")
        row = await self._store.get_validation(sid) if "\0" not in sid else None
        if row is None or row.client_secret != client_secret or row.purpose != purpose or self._is_old(row):
            raise ThreepidAuthFailed("There is no such confirmation; ask for a new letter")
        if row.validated_ts is None:
            raise ThreepidAuthFailed("The address has not been confirmed yet: open the link in the letter")
        return Proof(row.sid, row.address, row.validated_ts)

    def use(self, txn: WriteTransaction, proof: Proof) -> None:
        """Use a confirmation up. Raises `ThreepidAuthFailed` where another request has."""
        if not self._store.remove_validation(txn, proof.sid):
            raise ThreepidAuthFailed("The confirmation has been used")

    async def do_sweep(self, limit: int) -> int:
        """Remove up to `limit` validations that have grown old; how many."""
        return await self._store.remove_old_validations(self._now_ms() - 2 * self._lifetime_ms, limit)

    def _check_allowed(self, address: str) -> None:
        if self._allowed is not None and not any(pattern.fullmatch(address) for pattern in self._allowed):
            raise ThreepidDenied

    def _is_old(self, row: ValidationRow) -> bool:
        return row.created_ts <= self._now_ms() - self._lifetime_ms
