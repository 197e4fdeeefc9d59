"""Queries one LDAP directory. Everything here blocks on the network; call it in threads.

Laws:
- User input is escaped before it becomes part of a filter or a DN.
- An empty password is rejected without a query: directories accept a bind with an empty password
  as an anonymous bind.
- A search returns all matching entries or raises `DirectoryError`. So an entry never seems to be
  missing because a search was incomplete.
- Passwords are sent over TLS with a verified certificate, unless the configuration says otherwise.
  Referrals are not followed.
"""

import ssl
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from typing import Any, Final, TypeVar

from ldap3 import AUTO_BIND_NONE, BASE, NONE, SUBTREE, Connection, Server, Tls
from ldap3.core.exceptions import LDAPException
from ldap3.core.results import RESULT_INVALID_CREDENTIALS, RESULT_NO_SUCH_OBJECT, RESULT_SUCCESS
from ldap3.utils.conv import escape_bytes, escape_filter_chars
from ldap3.utils.dn import escape_rdn

from homeserver.config.ldap import LDAPProviderOptions
from homeserver.services.upstream.identity import (
    UpstreamIdentity,
    clean_addresses,
    clean_name,
    hash_profile,
)
from homeserver.services.upstream.ldap.types import (
    DirectoryEntry,
    DirectoryError,
    DirectoryListing,
    DirectoryPasswordCheck,
    ProfileHashes,
)

T = TypeVar("T")

PAGE_SIZE: Final = 500
"""Page size of a search, in entries."""
MAX_ENTRIES: Final = 2_000_000
SUBJECTS_PER_FILTER: Final = 50
"""Number of subjects in one filter."""
MAX_PASSWORD_LENGTH: Final = 512
_BINARY: Final = frozenset({"objectguid"})
"""Attributes with binary values; a subject holds them in hexadecimal."""
_REFUSED: Final = frozenset(
    # results of a bind with a wrong password, or for an entry that is missing, locked, disabled or
    # expired
    {RESULT_INVALID_CREDENTIALS, RESULT_NO_SUCH_OBJECT, 19, 50, 53}
)


class LDAPDirectory:
    """One directory, on one or more servers."""

    def __init__(self, config: LDAPProviderOptions) -> None:
        self._config = config
        seconds = -(-config.timeout // 1000)  # the library takes whole seconds
        tls = Tls(
            validate=ssl.CERT_REQUIRED,
            ca_certs_file=None if config.tls_ca_file is None else str(config.tls_ca_file),
        )
        self._servers = [
            Server(uri, tls=tls, connect_timeout=seconds, get_info=NONE, allowed_referral_hosts=[])
            for uri in config.uri
        ]
        self._seconds = seconds
        self._binary = config.attributes.subject.lower() in _BINARY

    def check_password(self, name: str, password: str) -> DirectoryPasswordCheck:
        """Implement `DirectoryClient.check_password`."""
        if not password or len(password) > MAX_PASSWORD_LENGTH or "\0" in password or not name:
            return DirectoryPasswordCheck(None)
        if self._config.mode == "bind":
            return self._ask(lambda server: self._bind_directly(server, name, password))
        by_name = f"({self._config.attributes.uid}={escape_filter_chars(name)})"
        return self._ask(lambda server: self._search_and_bind(server, by_name, password))

    def check_password_of(self, subject: str, password: str) -> DirectoryPasswordCheck:
        """Implement `DirectoryClient.check_password_of`."""
        if not password or len(password) > MAX_PASSWORD_LENGTH or "\0" in password:
            return DirectoryPasswordCheck(None)
        return self._ask(
            lambda server: self._search_and_bind(server, self._is_subject(subject), password)
        )

    def list_persons(
        self, known: Mapping[str, ProfileHashes], max_changed: int, later: Set[str] = frozenset()
    ) -> DirectoryListing:
        """Implement `DirectoryClient.list_persons`."""
        wanted = self._wanted_attributes() if known else [self._config.attributes.subject]

        def ask(server: Server) -> DirectoryListing:
            present: set[str] = set()
            changed: list[UpstreamIdentity] = []
            changed_later: list[UpstreamIdentity] = []
            with self._connected(
                server, self._config.bind_dn, self._config.bind_password
            ) as connection:
                filter = self._filter(f"({self._config.attributes.subject}=*)")
                for dn, attributes in self._search(connection, filter, wanted):
                    subject = self._subject(attributes)
                    present.add(subject)
                    is_later = subject in later
                    if subject in known and (is_later or len(changed) < max_changed):
                        identity = self._entry(dn, attributes).identity
                        if hash_profile(identity) != known[subject]:
                            (changed_later if is_later else changed).append(identity)
            return DirectoryListing(present, [*changed, *changed_later])

        return self._ask(ask)

    def find_subjects(self, subjects: Sequence[str]) -> set[str]:
        """Implement `DirectoryClient.find_subjects`."""

        def ask(server: Server) -> set[str]:
            found = set()
            with self._connected(
                server, self._config.bind_dn, self._config.bind_password
            ) as connection:
                for start in range(0, len(subjects), SUBJECTS_PER_FILTER):
                    wanted = "".join(
                        map(self._is_subject, subjects[start : start + SUBJECTS_PER_FILTER])
                    )
                    entries = self._search(
                        connection, self._filter(f"(|{wanted})"), [self._config.attributes.subject]
                    )
                    found |= {self._subject(attributes) for _dn, attributes in entries}
            return found

        return self._ask(ask)

    # Failover between servers.

    def _ask(self, query: Callable[[Server], T]) -> T:
        """Run a query on the first server that answers. Raises `DirectoryError`."""
        failures = []
        for server in list(self._servers):
            try:
                response = query(server)
            except (LDAPException, OSError) as error:
                failures.append(f"{server.name}: {error}")
                continue
            if server is not self._servers[0]:  # try the working server first next time
                self._servers = [server, *(each for each in self._servers if each is not server)]
            return response
        raise DirectoryError("; ".join(failures))

    @contextmanager
    def _connected(
        self, server: Server, user: str | None, password: str | None
    ) -> Iterator[Connection]:
        """Open and bind a connection. Raises LDAPException, OSError, `DirectoryError`."""
        connection = self._connect(server, user, password)
        try:
            if not connection.bind():
                raise DirectoryError(
                    f"{server.name} refuses to bind {user or 'anonymously'}: {_result(connection)}"
                )
            yield connection
        finally:
            connection.unbind()

    def _connect(self, server: Server, user: str | None, password: str | None) -> Connection:
        connection = Connection(
            server,
            user=user,
            password=password,
            auto_bind=AUTO_BIND_NONE,
            auto_referrals=False,
            receive_timeout=self._seconds,
            return_empty_attributes=False,
            check_names=False,
        )
        connection.open()
        if self._config.start_tls and not server.ssl and not connection.start_tls():
            raise DirectoryError(f"{server.name} refuses StartTLS: {_result(connection)}")
        return connection

    # Checking passwords.

    def _search_and_bind(
        self, server: Server, person: str, password: str
    ) -> DirectoryPasswordCheck:
        with self._connected(
            server, self._config.bind_dn, self._config.bind_password
        ) as connection:
            entries = list(
                self._search(connection, self._filter(person), self._wanted_attributes())
            )
        if len(entries) != 1:  # none, or ambiguous
            return DirectoryPasswordCheck(None, exists=bool(entries))
        entry = self._entry(*entries[0])
        return DirectoryPasswordCheck(entry if self._can_bind(server, entry.dn, password) else None)

    def _can_bind(self, server: Server, dn: str, password: str) -> bool:
        connection = self._connect(server, dn, password)
        try:
            if connection.bind():
                return True
            if connection.result["result"] in _REFUSED:
                return False
            raise DirectoryError(f"{server.name} cannot check a password: {_result(connection)}")
        finally:
            connection.unbind()

    def _bind_directly(self, server: Server, name: str, password: str) -> DirectoryPasswordCheck:
        dn = f"{self._config.attributes.uid}={escape_rdn(name)},{self._config.base}"
        connection = self._connect(server, dn, password)
        try:
            if not connection.bind():
                if connection.result["result"] in _REFUSED:
                    return DirectoryPasswordCheck(None)
                raise DirectoryError(
                    f"{server.name} cannot check a password: {_result(connection)}"
                )
            # users can read their own entry, and often no other
            entries = list(
                self._search(
                    connection, self._filter("(objectClass=*)"), self._wanted_attributes(), entry=dn
                )
            )
        finally:
            connection.unbind()
        return DirectoryPasswordCheck(self._entry(*entries[0]) if len(entries) == 1 else None)

    # Searching.

    def _search(
        self,
        connection: Connection,
        filter: str,
        attributes: Sequence[str],
        entry: str | None = None,
    ) -> Iterator[tuple[str, Mapping[str, list[bytes]]]]:
        """Yield DN and raw attributes of all matching entries, page by page; with `entry`, only of
        that DN, if it matches. Raises `DirectoryError` if the result is incomplete."""
        cookie: bytes | None = None
        count = 0
        while True:
            connection.search(
                self._config.base if entry is None else entry,
                filter,
                search_scope=SUBTREE if entry is None else BASE,
                attributes=list(attributes),
                paged_size=PAGE_SIZE,
                paged_cookie=cookie,
                time_limit=self._seconds,
            )
            if connection.result["result"] != RESULT_SUCCESS:
                raise DirectoryError(
                    f"{connection.server.name} cannot complete a search: {_result(connection)}"
                )
            for each in connection.response or ():
                if each["type"] != "searchResEntry":
                    continue
                count += 1
                if count > MAX_ENTRIES:
                    raise DirectoryError(
                        f"{connection.server.name} has more than {MAX_ENTRIES} entries"
                    )
                yield each["dn"], each["raw_attributes"]
            controls = connection.result.get("controls") or {}
            cookie = controls.get("1.2.840.113556.1.4.319", {}).get("value", {}).get("cookie")
            if not cookie:
                return

    def _filter(self, person: str) -> str:
        return person if self._config.filter is None else f"(&{person}{self._config.filter})"

    def _is_subject(self, subject: str) -> str:
        try:
            value = (
                escape_bytes(bytes.fromhex(subject))
                if self._binary
                else escape_filter_chars(subject)
            )
        except ValueError:  # the link was created with another subject attribute
            value = escape_filter_chars(subject)
        return f"({self._config.attributes.subject}={value})"

    # Reading entries.

    def _wanted_attributes(self) -> list[str]:
        names = self._config.attributes
        return [
            name for name in (names.uid, names.subject, names.name, names.mail) if name is not None
        ]

    def _subject(self, attributes: Mapping[str, list[bytes]]) -> str:
        values = _values(attributes, self._config.attributes.subject)
        if len(values) != 1:
            raise DirectoryError(
                f"an entry has {len(values)} values of {self._config.attributes.subject}; "
                "it must have one"
            )
        return values[0].hex() if self._binary else values[0].decode("utf-8", "replace")

    def _entry(self, dn: str, attributes: Mapping[str, list[bytes]]) -> DirectoryEntry:
        names = self._config.attributes
        uid = _texts(attributes, names.uid)
        shown = _texts(attributes, names.name)
        identity = UpstreamIdentity(
            subject=self._subject(attributes),
            localpart=uid[0] if uid else None,
            display_name=clean_name(shown[0]) if shown else None,
            emails=clean_addresses(_texts(attributes, names.mail)),
        )
        return DirectoryEntry(dn, identity)


def _values(attributes: Mapping[str, list[bytes]], name: str | None) -> list[bytes]:
    """Return the values of an attribute; attribute names ignore case."""
    if name is None:
        return []
    return next((values for key, values in attributes.items() if key.lower() == name.lower()), [])


def _texts(attributes: Mapping[str, list[bytes]], name: str | None) -> list[str]:
    return [value.decode("utf-8", "replace") for value in _values(attributes, name)]


def _result(connection: Connection) -> str:
    result: Mapping[str, Any] = connection.result or {}
    return f"{result.get('description')} {result.get('message') or ''}".strip()
