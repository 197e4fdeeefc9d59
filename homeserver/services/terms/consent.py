"""Who has agreed to the documents of now, who is still to, and where they do.

Laws:
- What is recorded is the version that somebody was shown. A version of the configuration that they
  have not agreed to is asked for.
- The link to the page is signed for one user and the versions of now: nobody else's consent can be
  given with it, and none to a later version.
- Whoever agrees may go on at once, on every node: their account has changed.

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
from homeserver.services.audit.audit import Happened, note
from homeserver.services.terms.policies import Policies, Policy
from storage.accounts.accounts import AccountStore
from storage.accounts.policy_consents import ConsentRow, PolicyConsentStore
from storage.engine.database import Database
from storage.engine.transaction import WriteTransaction
from storage.login.access_tokens import AccessTokenRow

CONSENT_PATH: Final = "/_mahalla/consent"
PROGRAMS: Final = ("bot", "support")
"""Types of users who are no people that could agree."""
_PURPOSE: Final = b"mahalla: links to the page where somebody agrees to terms"


class Consents:
    """Knows who has agreed, and takes their word."""

    def __init__(
        self,
        clock: IReactorTime,
        database: Database,
        accounts: AccountStore,
        store: PolicyConsentStore,
        policies: Policies,
        key: SigningKey,
        *,
        base_url: str,
        blocked_text: str | None,
    ) -> None:
        """`key`: what only this server knows; a key for these links alone is derived from it.
        `blocked_text`: what who has not agreed is told instead of doing what they ask for; None:
        they may do it."""
        self._clock = clock
        self._database = database
        self._accounts = accounts
        self._store = store
        self.policies = policies
        self.versions: Sequence[tuple[str, str]] = tuple(policies.versions.items())
        """The documents, each with its version of now."""
        self._secret = hmac.digest(key.seed, _PURPOSE, sha256)
        self._base_url = base_url.rstrip("/")
        self._blocked_text = blocked_text

    async def get_owed(self, user_id: UserID) -> Sequence[Policy]:
        """What somebody has not agreed to in the version of now; nothing for programs."""
        if not self.policies.all:
            return ()
        account = (await self._accounts.get_accounts([user_id])).get(user_id)
        if account is None or account.appservice_id is not None or account.user_type in PROGRAMS:
            return ()
        agreed = {(row.policy_id, row.version) for row in await self.get_consents(user_id)}
        return [
            policy
            for policy in self.policies.all
            if (policy.policy_id, policy.version) not in agreed
        ]

    async def get_consents(self, user_id: UserID) -> Sequence[ConsentRow]:
        """All that somebody has agreed to, the oldest first."""
        return (await self._store.get_consents([user_id])).get(user_id, [])

    def find_block(self, row: AccessTokenRow) -> tuple[str, str] | None:
        """What somebody is told who may not write before they have agreed, and the address of the
        page; None where they may write. The row was read with `versions`."""
        if self._blocked_text is None or row.of_service or row.user_type in PROGRAMS:
            return None
        if row.agreed >= len(self.versions):
            return None
        link = self.link(UserID(row.user_id))
        return self._blocked_text.replace("%(consent_uri)s", link), link

    def link(self, user_id: UserID) -> str:
        """The page, for somebody who need not be signed in there."""
        return f"{self._base_url}{CONSENT_PATH}?{urlencode({'user': user_id, 'signature': self._sign(user_id)})}"

    def is_signed(self, user_id: str, signature: str) -> bool:
        """Whether this server has made the link, for the versions of now."""
        return hmac.compare_digest(
            self._sign(user_id).encode(), signature.encode("utf-8", "surrogatepass")
        )

    async def do_agree(self, user_id: UserID, ip: str) -> None:
        """Somebody agrees to all documents, in the versions of now."""

        def write(txn: WriteTransaction) -> None:
            now = int(self._clock.seconds() * 1000)
            self._store.add_consents(txn, user_id, self.policies.versions, now)
            self._accounts.set_account_changed(txn, user_id)
            note(txn, user_id, Happened.TERMS_ACCEPTED, now, ip=ip)

        await self._database.write("agree_to_policies", write)

    async def get_users(
        self, policy: Policy, *, agreed: bool, after: str, limit: int
    ) -> Mapping[str, int | None]:
        """Up to `limit` people after one, by id, who have agreed to the version of now, and when,
        or who have not."""
        rows = await self._store.get_users(
            policy.policy_id, policy.version, agreed=agreed, after=after, limit=limit
        )
        return dict(rows)

    async def count(self) -> Mapping[str, int]:
        """How many people have agreed to each policy, in the version of now."""
        return await self._store.count_users(self.policies.versions)

    def _sign(self, user_id: str) -> str:
        words = f"{self.policies.fingerprint} {user_id}".encode("utf-8", "surrogatepass")
        return urlsafe_b64encode(hmac.digest(self._secret, words, sha256)[:24]).decode()
