"""With whom this server talks. Consulted everywhere a server name comes in or is to be contacted.

Laws:
- What is allowed is matched by the whole server name, port included. What is denied is matched by
  the host too, so that a port more in its name helps nobody. Letters count in either case. What is
  denied stays denied, whatever allows it.
- Where the federation has a list of members, nobody else is talked with; without a list in force,
  with nobody at all.
- Our own name is always allowed.
- The rules may be changed while the server runs; nobody keeps an answer.
"""

import re
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Final

import msgspec
from twisted.logger import Logger

from federation.protocol.errors import Forbidden
from federation.protocol.events import Event
from federation.protocol.ids import KeyID, ServerName, domain_of, host_of
from federation.protocol.member_list import Member, MemberList, Right, right_of
from storage.cache import LRU

SECONDS_BETWEEN_LINES: Final = 3600.0
"""In which a server is named once in the log where refusals are only simulated."""
MAX_NAMED: Final = 10_000
_NO_KEYS: Final[Mapping[KeyID, bytes]] = {}


class BadPattern(ValueError):
    """A pattern for server names that is none."""


class ServerPatterns:
    """Names (`a.example`), names with wildcards (`*.example`, `?`), and regular expressions
    (`/[a-z]+[.]example/`)."""

    def __init__(self, patterns: Iterable[str]) -> None:
        """Raises BadPattern."""
        self.patterns = tuple(patterns)
        names, expressions = set(), []
        for pattern in self.patterns:
            if len(pattern) > 2 and pattern.startswith("/") and pattern.endswith("/"):
                expressions.append(_check(pattern[1:-1], pattern))
            elif "*" in pattern or "?" in pattern:
                expressions.append(
                    re.escape(pattern.lower()).replace(r"\*", ".*").replace(r"\?", ".")
                )
            else:
                names.add(pattern.lower())
        self._names = frozenset(names)
        joined = "|".join(f"(?:{each})" for each in expressions)
        self._expression = re.compile(joined, re.IGNORECASE) if expressions else None

    def match(self, name: str) -> bool:
        """Whether this whole name is one of them."""
        if name.lower() in self._names:
            return True
        return self._expression is not None and self._expression.fullmatch(name) is not None


class PolicyRules(msgspec.Struct, frozen=True):
    """What the configuration says."""

    allowed: ServerPatterns | None = None
    """The only servers to talk with; None: all."""
    denied: ServerPatterns | None = None
    enabled: bool = True
    """False: no other server at all."""
    is_simulation: bool = False
    """Refuse nothing, and say in the log what would be refused."""
    has_member_list: bool = False
    """Talk with members of the federation alone; see `Policy.use_list`."""


def make_rules(
    allowed: Collection[str] | None,
    denied: Collection[str] = (),
    *,
    enabled: bool = True,
    is_simulation: bool = False,
    has_member_list: bool = False,
) -> PolicyRules:
    """Rules of patterns as text. Raises BadPattern."""
    return PolicyRules(
        None if allowed is None else ServerPatterns(allowed),
        ServerPatterns(denied) if denied else None,
        enabled,
        is_simulation,
        has_member_list,
    )


class Policy:
    """The policy in force."""

    _log = Logger()

    def __init__(self, own: ServerName, rules: PolicyRules, seconds: Callable[[], float]) -> None:
        """`own`: this server's name; `seconds`: the time."""
        self._own = own
        self._rules = rules
        self._seconds = seconds
        self._members: MemberList | None = None
        self._named: LRU[tuple[str, Right | None], float] = LRU(max_entries=MAX_NAMED)
        self._listeners: list[Callable[[], None]] = []
        self._watchers: list[Callable[[ServerName], None]] = []

    def subscribe(self, listener: Callable[[], None]) -> None:
        """Call this whenever the rules or the list have changed: whom they refused may be allowed
        now."""
        self._listeners.append(listener)

    def watch_turned_away(self, watcher: Callable[[ServerName], None]) -> None:
        """Call this with the name of each server that asks something and is refused, as it says
        itself: no signature was checked."""
        self._watchers.append(watcher)

    @property
    def rules(self) -> PolicyRules:
        """What the configuration says."""
        return self._rules

    @property
    def members(self) -> MemberList | None:
        """The list of members that is in force."""
        members = self.latest_members
        return None if members is None or members.expires <= self._seconds() else members

    @property
    def latest_members(self) -> MemberList | None:
        """The list of members that was in force last: it may have expired."""
        return self._members

    def change(self, rules: PolicyRules) -> None:
        """Other rules from now on."""
        self._rules = rules
        self._tell_of_change()

    def use_list(self, members: MemberList | None) -> None:
        """The list of members from now on, until it expires. It counts where the rules say that
        there is one."""
        self._members = members
        self._tell_of_change()

    def allows(self, server: ServerName, right: Right | None = None) -> bool:
        """Whether this server talks with that one, and believes what is said in its name; of
        `right`, about that."""
        return self._refusal(server, right) is None

    def may_allow_later(self, server: ServerName) -> bool:
        """Whether the server is allowed, or is refused only for as long as federation is off or the
        list of members is not in force: what cannot be told again later is kept for it."""
        rules = self._rules
        if self.allows(server):
            return True
        if _find_pattern_refusal(rules, server) is not None:
            return False
        return not rules.has_member_list or self.members is None or self._member(server) is not None

    def allows_event(self, event: Event) -> bool:
        """Whether an event is taken in, by who sent it."""
        server = domain_of(event.sender)
        is_membership = event.type == "m.room.member" and event.state_key is not None
        if is_membership and event.state_key == event.sender:
            return self.allows(server)  # whoever may not write may come and go
        if not self.allows(server, Right.WRITING):
            return False
        is_invite = is_membership and event.content.get("membership") == "invite"
        is_of_ours = is_invite and str(event.state_key).partition(":")[2] == self._own
        return not is_of_ours or self.allows(server, Right.INVITES)

    def check_destination(self, server: ServerName, path: str = "") -> None:
        """Raises Forbidden, with a text for the person who wanted to reach somebody there. `path`:
        of the request."""
        refusal = self._refusal(server, right_of(path))
        if refusal is not None:
            raise Forbidden(
                f"The policy of this server does not allow federation with {server}: {refusal}"
            )

    def check_origin(self, server: ServerName, path: str = "") -> None:
        """Raises Forbidden, with a text for the server that asks. `path`: of the request."""
        refusal = self._refusal(server, right_of(path))
        if refusal is not None:
            if not self.allows(server):
                for watcher in self._watchers:
                    watcher(server)
            raise Forbidden(
                f"The policy of this server does not allow federation with you: {refusal}"
            )

    def pinned_keys(self, server: ServerName) -> Mapping[KeyID, bytes]:
        """The only keys to believe of a server; empty where it says its keys itself, or the rules
        are only tried out."""
        member = None if self._rules.is_simulation else self._member(server)
        return _NO_KEYS if member is None else member.keys

    def _member(self, server: ServerName) -> Member | None:
        members = self.members if self._rules.has_member_list else None
        return None if members is None else members.members.get(server.lower())

    def _refusal(self, server: ServerName, right: Right | None) -> str | None:
        """Why not; None where the server is allowed, or the rules are only tried out."""
        refusal = self.find_refusal(server, right)
        if refusal is None or not self._rules.is_simulation:
            return refusal
        self._name(server, right, refusal)
        return None

    def find_refusal(self, server: ServerName, right: Right | None = None) -> str | None:
        """Why the rules do not allow the server, simulated or not; None where they do."""
        rules = self._rules
        if server == self._own:
            return None
        if not rules.enabled:
            return "federation is switched off"
        ruled_out = _find_pattern_refusal(rules, server)
        if ruled_out is not None:
            return ruled_out
        if not rules.has_member_list:
            return None
        if self.members is None:
            return "the list of the federation's members is missing or out of date"
        member = self._member(server)
        if member is None:
            return "that server is no member of the federation"
        if right is not None and right in member.denied:
            return f"the federation does not let that server take part in {right.value}"
        return None

    def _tell_of_change(self) -> None:
        self._named.clear()
        for listener in self._listeners:
            listener()

    def _name(self, server: ServerName, right: Right | None, refusal: str) -> None:
        now, key = self._seconds(), (server, right)
        if now < (self._named.peek(key) or now):
            return
        self._log.warn(
            "the policy would refuse {server}, were it not simulated: {refusal}",
            server=server,
            refusal=refusal,
        )
        self._named.put(key, now + SECONDS_BETWEEN_LINES)


def _find_pattern_refusal(rules: PolicyRules, server: ServerName) -> str | None:
    """Why the patterns of the configuration do not allow the server; None where they do."""
    if rules.denied is not None and _is_denied(rules.denied, server):
        return "that server is blocked here"
    if rules.allowed is not None and not rules.allowed.match(server):
        return "that server is not among those that are allowed here"
    return None


def _is_denied(denied: ServerPatterns, server: str) -> bool:
    host = host_of(server)
    # a dot at the end of a host leads to the same host
    return any(denied.match(name) for name in (server, host, host.rstrip(".")))


def _check(expression: str, pattern: str) -> str:
    try:
        re.compile(expression)
    except re.error as error:
        raise BadPattern(f"{pattern} is no regular expression: {error}") from error
    return expression
