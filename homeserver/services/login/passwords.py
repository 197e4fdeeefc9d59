"""Passwords: kept as Argon2id, checked in threads, and never known to anyone again.

Laws:
- A hash is made and checked in a few threads of its own, by turns among the addresses from which
  that is asked for, so that none holds up the others; where more wait than a bound, of one or of
  all, further ones are refused (`LimitExceeded`).
- For a user who does not exist, or has no password, the same work is done: time tells nothing.
- bcrypt hashes of imported accounts are checked as they were made, and replaced at the next
  sign-in.
"""

import unicodedata
from base64 import b64encode
from collections.abc import Awaitable, Callable
from typing import Final, Protocol, TypeVar

import bcrypt
import msgspec
from argon2 import PasswordHasher, Type
from argon2.exceptions import InvalidHashError, VerificationError
from twisted.internet.interfaces import IReactorFromThreads
from twisted.internet.threads import deferToThreadPool
from twisted.python.threadpool import ThreadPool

from federation.peers.fair_semaphore import FairSemaphore
from federation.protocol.errors import InvalidParam, LimitExceeded, WeakPassword
from homeserver.http.rate_limits import address_key

T = TypeVar("T")

LONGEST_PASSWORD: Final = 512
"""In characters."""

_BCRYPT_LENGTH: Final = 72
"""bcrypt looks at no more bytes than this."""
_HASH_LENGTH: Final = 32
_SALT_LENGTH: Final = 16


class Threads(Protocol):
    """Where work that takes long is done."""

    def run(self, work: Callable[[], T], asker: str = "") -> Awaitable[T]:
        """The result of `work`, which may run in another thread. `asker`: who asks for it, such as
        an address. Raises `LimitExceeded` when too many wait."""
        ...


class HashingThreads:
    """A few threads, and a bounded queue before them, in which who asks has turns."""

    def __init__(
        self,
        reactor: IReactorFromThreads,
        pool: ThreadPool,
        *,
        longest_queue: int = 200,
        longest_queue_of_one: int = 200,
        most_of_one: int | None = None,
    ) -> None:
        """`most_of_one`: how many of the threads one asker may hold up at the same time; None: all,
        where nothing takes long."""
        self._reactor = reactor
        self._pool = pool
        self._turns: FairSemaphore[str] = FairSemaphore(
            pool.max,
            most_of_one or pool.max,
            max_waiting=longest_queue,
            max_waiting_per_key=longest_queue_of_one,
            refusal=lambda _asker: _TooManyAtOnce(),
        )

    async def run(self, work: Callable[[], T], asker: str = "") -> T:
        """As `Threads.run`."""
        async with self._turns.hold(asker):
            return await deferToThreadPool(self._reactor, self._pool, work)


class _TooManyAtOnce(LimitExceeded):
    """The queue is full."""

    def __init__(self) -> None:
        super().__init__("Too many people are signing in at this moment", retry_after_ms=2000)


class PasswordLength(InvalidParam):
    default_text = f"A password has 1 to {LONGEST_PASSWORD} characters"


class PasswordTooShort(WeakPassword):
    """It has fewer characters than the policy wants."""

    def __init__(self, shortest: int) -> None:
        super().__init__(f"The password must have at least {shortest} characters")
        self.shortest = shortest


class PasswordPolicy(msgspec.Struct, frozen=True):
    """What a new password must have."""

    minimum_length: int = 0
    require_digit: bool = False
    require_symbol: bool = False
    require_lowercase: bool = False
    require_uppercase: bool = False

    def check(self, password: str) -> None:
        """Raises `WeakPassword`, saying what is missing, or `InvalidParam` for one that nobody can
        type."""
        if not password or len(password) > LONGEST_PASSWORD or "\0" in password:
            raise PasswordLength
        if len(password) < self.minimum_length:
            raise PasswordTooShort(self.minimum_length)
        wanted = (
            (self.require_digit, str.isdigit, "a digit"),
            (self.require_symbol, lambda sign: not sign.isalnum(), "a symbol"),
            (self.require_lowercase, str.islower, "a lower-case letter"),
            (self.require_uppercase, str.isupper, "an upper-case letter"),
        )
        for required, has, what in wanted:
            if required and not any(has(sign) for sign in password):
                raise WeakPassword(f"The password must have {what}")


class Verdict(msgspec.Struct, frozen=True):
    """Whether a password is right, and a new hash to keep in place of an outdated one."""

    correct: bool
    new_hash: str | None = None


class Passwords:
    """Makes and checks hashes. `rounds` is the cost on bcrypt's scale: 12 costs 19 MiB and two
    passes, which is the smallest that OWASP recommends for Argon2id; each step doubles or halves
    it; 4 is for filling a test database."""

    def __init__(
        self,
        threads: Threads,
        *,
        rounds: int = 12,
        pepper: str = "",
        policy: PasswordPolicy | None = None,
    ) -> None:
        memory, passes = _cost(rounds)
        self._threads = threads
        self._pepper = pepper
        self._policy = policy or PasswordPolicy()
        self.shortest = max(1, self._policy.minimum_length)
        """The fewest characters that a new password may have."""
        self._hasher = PasswordHasher(
            time_cost=passes,
            memory_cost=memory,
            parallelism=1,
            hash_len=_HASH_LENGTH,
            salt_len=_SALT_LENGTH,
            type=Type.ID,
        )
        # The hash of no password: checking against it costs what checking against any costs.
        salt, digest = (
            b64encode(bytes(size)).decode().rstrip("=") for size in (_SALT_LENGTH, _HASH_LENGTH)
        )
        self._nobody = f"$argon2id$v=19$m={memory},t={passes},p=1${salt}${digest}"

    def check_policy(self, password: str) -> None:
        """Raises `WeakPassword` or `InvalidParam` unless this may become somebody's password."""
        self._policy.check(password)

    async def hash(self, password: str, address: str | None = None) -> str:
        """The hash to keep. `address`, here and below: whence it is asked for, where that is known.
        Raises `LimitExceeded`."""
        return await self._threads.run(
            lambda: self._hasher.hash(self._prepare(password)), address_key(address or "")
        )

    async def verify(
        self, password: str, password_hash: str | None, address: str | None = None
    ) -> Verdict:
        """Whether the password is the one hashed; never for the hash None. Raises
        `LimitExceeded`."""
        if len(password) > LONGEST_PASSWORD:
            return Verdict(correct=False)
        return await self._threads.run(
            lambda: self._verify(self._prepare(password), password_hash), address_key(address or "")
        )

    def _prepare(self, password: str) -> bytes:
        # NFKC: the same word typed on another keyboard is the same password.
        return (unicodedata.normalize("NFKC", password) + self._pepper).encode(
            "utf-8", "surrogatepass"
        )

    def _verify(self, secret: bytes, password_hash: str | None) -> Verdict:
        if password_hash is not None and password_hash.startswith("$2"):
            if not _verify_bcrypt(secret, password_hash):
                return Verdict(correct=False)
            return Verdict(correct=True, new_hash=self._hasher.hash(secret))
        try:
            self._hasher.verify(password_hash or self._nobody, secret)
        except (VerificationError, InvalidHashError):
            return Verdict(correct=False)
        if password_hash is None:
            return Verdict(correct=False)
        outdated = self._hasher.check_needs_rehash(password_hash)
        return Verdict(correct=True, new_hash=self._hasher.hash(secret) if outdated else None)


def _cost(rounds: int) -> tuple[int, int]:
    """Memory in KiB and number of passes."""
    if rounds <= 12:
        return max(8, 19 * 1024 >> (12 - rounds)), 2 if rounds == 12 else 1
    return 19 * 1024, 2 << (rounds - 12)


def _verify_bcrypt(secret: bytes, password_hash: str) -> bool:
    try:
        return bcrypt.checkpw(secret[:_BCRYPT_LENGTH], password_hash.encode())
    except ValueError:  # not a bcrypt hash after all
        return False
