"""Hashing of passwords with Argon2id, and the password policy.

Laws:
- Hashes are computed in a small thread pool, fairly among the client addresses, so that one address
  cannot delay the others. The queue is bounded per address and in total; requests above a bound are
  refused (`LimitExceeded`).
- An unknown user, or one without a password, costs the same work as a wrong password, so the time
  reveals nothing.
- The bcrypt hash of an imported account is accepted. At the next sign-in, an Argon2id hash replaces
  it.
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

MAX_PASSWORD_LENGTH: Final = 512
"""In characters."""

_BCRYPT_LENGTH: Final = 72
"""bcrypt ignores all further bytes."""
_HASH_LENGTH: Final = 32
_SALT_LENGTH: Final = 16


class Threads(Protocol):
    """Runs slow work."""

    def run(self, work: Callable[[], T], key: str = "") -> Awaitable[T]:
        """Return the result of `work`, which may run in another thread.

        `key`: the key for fairness, such as a client address. Raises `LimitExceeded` when the
        queue is full.
        """
        ...


class HashingThreads:
    """A thread pool with a bounded queue that is fair among keys."""

    def __init__(
        self,
        *,
        reactor: IReactorFromThreads,
        pool: ThreadPool,
        max_queue: int = 200,
        max_queue_per_key: int = 200,
        max_threads_per_key: int | None = None,
    ) -> None:
        """`max_threads_per_key`: the threads that one key may occupy; None: all."""
        self._reactor = reactor
        self._pool = pool
        self._slots: FairSemaphore[str] = FairSemaphore(
            permits=pool.max,
            permits_per_key=max_threads_per_key or pool.max,
            max_waiting=max_queue,
            max_waiting_per_key=max_queue_per_key,
            refusal=lambda _key: _TooManyAtOnce(),
        )

    async def run(self, work: Callable[[], T], key: str = "") -> T:
        """Run `work` in the pool; see `Threads.run`."""
        async with self._slots.hold(key):
            return await deferToThreadPool(self._reactor, self._pool, work)


class _TooManyAtOnce(LimitExceeded):
    """The queue is full."""

    def __init__(self) -> None:
        super().__init__("Too many people are signing in right now", retry_after_ms=2000)


class InvalidPasswordLength(InvalidParam):
    default_text = f"A password must have 1 to {MAX_PASSWORD_LENGTH} characters"


class PasswordTooShort(WeakPassword):
    """The password has fewer characters than the policy requires."""

    def __init__(self, shortest: int) -> None:
        super().__init__(f"The password must have at least {shortest} characters")
        self.shortest = shortest


class PasswordPolicy(msgspec.Struct, frozen=True):
    """Requirements for new passwords."""

    minimum_length: int = 0
    require_digit: bool = False
    require_symbol: bool = False
    require_lowercase: bool = False
    require_uppercase: bool = False

    def check(self, password: str) -> None:
        """Raise `WeakPassword` with the missing requirement, or `InvalidParam` for a password that
        is empty, too long or contains NUL."""
        if not password or len(password) > MAX_PASSWORD_LENGTH or "\0" in password:
            raise InvalidPasswordLength
        if len(password) < self.minimum_length:
            raise PasswordTooShort(self.minimum_length)
        requirements = (
            (self.require_digit, str.isdigit, "a digit"),
            (self.require_symbol, lambda character: not character.isalnum(), "a symbol"),
            (self.require_lowercase, str.islower, "a lower-case letter"),
            (self.require_uppercase, str.isupper, "an upper-case letter"),
        )
        for required, matches, name in requirements:
            if required and not any(matches(character) for character in password):
                raise WeakPassword(f"The password must have {name}")


class PasswordCheck(msgspec.Struct, frozen=True):
    """The result of a password check, with a new hash to replace an outdated one."""

    correct: bool
    new_hash: str | None = None


class Passwords:
    """Creates and checks hashes.

    `rounds`: the cost on bcrypt's scale. 12 costs 19 MiB and two passes, the minimum that OWASP
    recommends for Argon2id; each step above doubles the passes, and each step below halves the
    memory, with one pass. 4 is for filling a test database.
    """

    def __init__(
        self,
        *,
        threads: Threads,
        rounds: int = 12,
        pepper: str = "",
        policy: PasswordPolicy | None = None,
    ) -> None:
        memory, passes = _cost(rounds)
        self._threads = threads
        self._pepper = pepper
        self._policy = policy or PasswordPolicy()
        self.min_length = max(1, self._policy.minimum_length)
        """The minimum length of a new password."""
        self._hasher = PasswordHasher(
            time_cost=passes,
            memory_cost=memory,
            parallelism=1,
            hash_len=_HASH_LENGTH,
            salt_len=_SALT_LENGTH,
            type=Type.ID,
        )
        # The hash of no password; checking against it costs as much as checking a real hash.
        salt, digest = (
            b64encode(bytes(size)).decode().rstrip("=") for size in (_SALT_LENGTH, _HASH_LENGTH)
        )
        self._dummy_hash = f"$argon2id$v=19$m={memory},t={passes},p=1${salt}${digest}"

    def check_policy(self, password: str) -> None:
        """Raise `WeakPassword` or `InvalidParam` unless this is acceptable as a new password."""
        self._policy.check(password)

    async def hash(self, password: str, address: str | None = None) -> str:
        """Return the hash to store. `address`, here and below: the client's IP address, if known.

        Raises `LimitExceeded`.
        """
        return await self._threads.run(
            lambda: self._hasher.hash(self._prepare(password)), address_key(address or "")
        )

    async def verify(
        self, password: str, password_hash: str | None, address: str | None = None
    ) -> PasswordCheck:
        """Check a password against a hash; it is never correct for the hash None.

        Raises `LimitExceeded`.
        """
        if len(password) > MAX_PASSWORD_LENGTH:
            return PasswordCheck(correct=False)
        return await self._threads.run(
            lambda: self._verify(self._prepare(password), password_hash), address_key(address or "")
        )

    def _prepare(self, password: str) -> bytes:
        # NFKC: the same text typed on another keyboard is the same password.
        return (unicodedata.normalize("NFKC", password) + self._pepper).encode(
            "utf-8", "surrogatepass"
        )

    def _verify(self, secret: bytes, password_hash: str | None) -> PasswordCheck:
        if password_hash is not None and password_hash.startswith("$2"):
            if not _verify_bcrypt(secret, password_hash):
                return PasswordCheck(correct=False)
            return PasswordCheck(correct=True, new_hash=self._hasher.hash(secret))
        try:
            self._hasher.verify(password_hash or self._dummy_hash, secret)
        except (VerificationError, InvalidHashError):
            return PasswordCheck(correct=False)
        if password_hash is None:
            return PasswordCheck(correct=False)
        outdated = self._hasher.check_needs_rehash(password_hash)
        return PasswordCheck(correct=True, new_hash=self._hasher.hash(secret) if outdated else None)


def _cost(rounds: int) -> tuple[int, int]:
    """Return memory in KiB and the number of passes."""
    if rounds <= 12:
        return max(8, 19 * 1024 >> (12 - rounds)), 2 if rounds == 12 else 1
    return 19 * 1024, 2 << (rounds - 12)


def _verify_bcrypt(secret: bytes, password_hash: str) -> bool:
    try:
        return bcrypt.checkpw(secret[:_BCRYPT_LENGTH], password_hash.encode())
    except ValueError:  # not a bcrypt hash after all
        return False
