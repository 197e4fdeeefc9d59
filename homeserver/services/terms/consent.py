"""Consent of users to the policies: records it, finds missing consents, links to the consent page.

Laws:
- A consent is stored for the version that the user was shown. A user who has not accepted the
  configured version has to accept it. Bots, support users and users of application services need no
  consent.
- The link to the page is signed for one user and the current versions: it cannot be used to accept
  for another user, or to accept a later version.
- The write of a consent returns only after every node has invalidated its cache of the account. So
  the user may continue immediately on every node.

spec: client-server-api#terms-of-service-at-registration
"""

import hmac
from base64 import urlsafe_b64encode
from collections.abc import Mapping, Sequence
from hashlib import sha256
from typing import Final
from urllib.parse import urlencode

from twisted.internet.interfaces import IReactorTime

from federation.protocol.ids import UserID
from federation.protocol.signing import SigningKey
from homeserver.services.audit.audit import AuditEvent, record_event
from homeserver.services.terms.policies import Policies, Policy
from storage.accounts.accounts import AccountStore
from storage.accounts.policy_consents import ConsentRow, PolicyConsentStore
from storage.engine.database import Database
from storage.engine.transaction import WriteTransaction
from storage.login.access_tokens import AccessTokenRow

CONSENT_PATH: Final = "/_mahalla/consent"
NON_HUMAN_USER_TYPES: Final = ("bot", "support")
"""User types that are not people, so need no consent."""
_PURPOSE: Final = b"mahalla: links to the page where somebody agrees to terms"


class Consents:
    """Reads and stores consents."""

    def __init__(
        self,
        *,
        clock: IReactorTime,
        database: Database,
        accounts: AccountStore,
        store: PolicyConsentStore,
        policies: Policies,
        key: SigningKey,
        base_url: str,
        blocked_text: str | None,
    ) -> None:
        """`key`: the server's signing key, from which the key for the links is derived.

        `blocked_text`: the error text for requests of users without consent; None: such requests
        are allowed.
        """
        self._clock = clock
        self._database = database
        self._accounts = accounts
        self._store = store
        self.policies = policies
        self.versions: Sequence[tuple[str, str]] = tuple(policies.versions.items())
        """The policies with their current versions."""
        self._secret = hmac.digest(key.seed, _PURPOSE, sha256)
        self._base_url = base_url.rstrip("/")
        self._blocked_text = blocked_text

    async def get_missing(self, user_id: UserID) -> Sequence[Policy]:
        """Return the policies whose current version the user has not accepted; none for bots."""
        if not self.policies.all:
            return ()
        account = (await self._accounts.get_accounts([user_id])).get(user_id)
        if (
            account is None
            or account.appservice_id is not None
            or account.user_type in NON_HUMAN_USER_TYPES
        ):
            return ()
        agreed = {(row.policy_id, row.version) for row in await self.get_consents(user_id)}
        return [
            policy
            for policy in self.policies.all
            if (policy.policy_id, policy.version) not in agreed
        ]

    async def get_consents(self, user_id: UserID) -> Sequence[ConsentRow]:
        """Return all consents of a user, oldest first."""
        return (await self._store.get_consents([user_id])).get(user_id, [])

    def find_consent_block(self, row: AccessTokenRow) -> tuple[str, str] | None:
        """Return the error text and the URL of the consent page for a user who must consent first.

        None for a user who may write. `row`: read with `versions`.
        """
        if (
            self._blocked_text is None
            or row.is_appservice_account
            or row.user_type in NON_HUMAN_USER_TYPES
        ):
            return None
        if row.accepted_policies >= len(self.versions):
            return None
        link = self.link(UserID(row.user_id))
        return self._blocked_text.replace("%(consent_uri)s", link), link

    def link(self, user_id: UserID) -> str:
        """Return the URL of the consent page for a user, who need not be signed in there."""
        query = urlencode({"user": user_id, "signature": self._sign(user_id)})
        return f"{self._base_url}{CONSENT_PATH}?{query}"

    def is_signed(self, user_id: str, signature: str) -> bool:
        """Return whether this server signed the link, for the current versions."""
        return hmac.compare_digest(
            self._sign(user_id).encode(), signature.encode("utf-8", "surrogatepass")
        )

    async def do_accept(self, user_id: UserID, ip: str) -> None:
        """Store the user's consent to the current versions of all policies."""

        def write(txn: WriteTransaction) -> None:
            now = int(self._clock.seconds() * 1000)
            self._store.add_consents(txn, user_id, self.policies.versions, now)
            self._accounts.set_account_changed(txn, user_id)
            record_event(txn, user_id, AuditEvent.TERMS_ACCEPTED, now, ip=ip)

        await self._database.write("agree_to_policies", write)

    async def get_users(
        self, policy: Policy, *, agreed: bool, after: str, limit: int
    ) -> Mapping[str, int | None]:
        """Return up to `limit` users after `after`, in the order of their IDs.

        `agreed`: those who have accepted the current version of the policy, with the time; else
        those who have not.
        """
        rows = await self._store.get_users(
            policy.policy_id, policy.version, agreed=agreed, after=after, limit=limit
        )
        return dict(rows)

    async def count_accepted(self) -> Mapping[str, int]:
        """Return the number of users who have accepted the current version of each policy."""
        return await self._store.count_users(self.policies.versions)

    def _sign(self, user_id: str) -> str:
        message = f"{self.policies.fingerprint} {user_id}".encode("utf-8", "surrogatepass")
        return urlsafe_b64encode(hmac.digest(self._secret, message, sha256)[:24]).decode()
