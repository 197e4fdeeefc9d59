"""Decides with which servers this server federates, and which kinds of data it exchanges with each.

The configuration has patterns of allowed and denied server names. It may also require a signed list
of the federation's members (`member_list_refresher.py`). The list may deny a member some kinds of
data, such as invites or media (`Right`).

Laws:
- Our own name is allowed, whatever the rules are.
- An allow pattern matches the complete server name with its port. A deny pattern also matches the
  host without its port, so another port does not evade it. Matching ignores case. A deny pattern
  takes precedence over allow patterns and the list of members.
- If the configuration requires a list of members, servers that are not on it are refused. Members
  are refused too if there are allow patterns and none matches. While the list is missing or has
  expired, all servers but our own are refused.
- If the configuration asks for a simulation (`PolicyRules.is_simulation`), nothing is refused. What
  the rules would refuse is only logged.
- The rules may change at run time, so callers must not cache a decision.
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

SIMULATION_LOG_SECONDS: Final = 3600.0
"""Time in which one server is logged once, if refusals are only simulated."""
MAX_LOGGED: Final = 10_000
_NO_KEYS: Final[Mapping[KeyID, bytes]] = {}


class InvalidPattern(ValueError):
    """An invalid pattern for server names."""


class ServerPatterns:
    """A set of names (`a.example`), wildcards (`*.example`, `?`) and regular expressions
    (`/[a-z]+[.]example/`)."""

    def __init__(self, patterns: Iterable[str]) -> None:
        """Raises InvalidPattern."""
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
        """Return whether the complete name matches one of the patterns."""
        if name.lower() in self._names:
            return True
        return self._expression is not None and self._expression.fullmatch(name) is not None


class PolicyRules(msgspec.Struct, frozen=True):
    """The rules of the configuration."""

    allowed: ServerPatterns | None = None
    """The only servers to federate with. None: all."""
    denied: ServerPatterns | None = None
    enabled: bool = True
    """False: federate with no other server."""
    is_simulation: bool = False
    """Refuse nothing, and log what would be refused."""
    has_member_list: bool = False
    """Federate only with members of the list; see `FederationPolicy.use_list`."""


def make_rules(
    allowed: Collection[str] | None,
    denied: Collection[str] = (),
    *,
    enabled: bool = True,
    is_simulation: bool = False,
    has_member_list: bool = False,
) -> PolicyRules:
    """Compile rules from patterns as text. Raises InvalidPattern."""
    return PolicyRules(
        None if allowed is None else ServerPatterns(allowed),
        ServerPatterns(denied) if denied else None,
        enabled,
        is_simulation,
        has_member_list,
    )


class FederationPolicy:
    """The policy in force."""

    _log = Logger()

    def __init__(
        self, *, own: ServerName, rules: PolicyRules, seconds: Callable[[], float]
    ) -> None:
        """`own`: the name of this server. `seconds`: a clock."""
        self._own = own
        self._rules = rules
        self._seconds = seconds
        self._members: MemberList | None = None
        self._logged: LRU[tuple[str, Right | None], float] = LRU(max_entries=MAX_LOGGED)
        self._listeners: list[Callable[[], None]] = []
        self._watchers: list[Callable[[ServerName], None]] = []

    def subscribe(self, listener: Callable[[], None]) -> None:
        """Call this when the rules or the list have changed: other servers may be allowed now."""
        self._listeners.append(listener)

    def watch_refused(self, watcher: Callable[[ServerName], None]) -> None:
        """Call this with the name of each server whose request is refused.

        The name is taken from the request, and its signature was not checked.
        """
        self._watchers.append(watcher)

    @property
    def rules(self) -> PolicyRules:
        """The rules of the configuration."""
        return self._rules

    @property
    def members(self) -> MemberList | None:
        """The list of members in force, or None."""
        members = self.latest_members
        return None if members is None or members.expires <= self._seconds() else members

    @property
    def latest_members(self) -> MemberList | None:
        """The last list of members. It may have expired."""
        return self._members

    def change(self, rules: PolicyRules) -> None:
        """Replace the rules."""
        self._rules = rules
        self._notify_listeners()

    def use_list(self, members: MemberList | None) -> None:
        """Use this list of members until it expires, provided that the rules require a list."""
        self._members = members
        self._notify_listeners()

    def allows(self, server: ServerName, right: Right | None = None) -> bool:
        """Return whether we federate with this server and accept data in its name.

        `right`: ask about this kind of data only.
        """
        return self._refusal(server, right) is None

    def may_allow_later(self, server: ServerName) -> bool:
        """Return whether the server is allowed, or refused only temporarily.

        A refusal is temporary if federation is off, or if the required list of members is not in
        force. Data that cannot be sent again later is stored for servers that may be allowed later.
        """
        rules = self._rules
        if self.allows(server):
            return True
        if _find_pattern_refusal(rules, server) is not None:
            return False
        return not rules.has_member_list or self.members is None or self._member(server) is not None

    def allows_event(self, event: Event) -> bool:
        """Return whether the policy accepts an event from its sender."""
        server = domain_of(event.sender)
        is_membership = event.type == "m.room.member" and event.state_key is not None
        if is_membership and event.state_key == event.sender:
            return self.allows(server)  # without the right to write one may still join and leave
        if not self.allows(server, Right.WRITING):
            return False
        is_invite = is_membership and event.content.get("membership") == "invite"
        is_for_local_user = is_invite and str(event.state_key).partition(":")[2] == self._own
        return not is_for_local_user or self.allows(server, Right.INVITES)

    def check_destination(self, server: ServerName, path: str = "") -> None:
        """Refuse an outgoing request. Raises Forbidden with a text for the user behind it.

        `path`: of the request.
        """
        refusal = self._refusal(server, right_of(path))
        if refusal is not None:
            raise Forbidden(
                f"The policy of this server does not allow federation with {server}: {refusal}"
            )

    def check_origin(self, server: ServerName, path: str = "") -> None:
        """Refuse an incoming request. Raises Forbidden with a text for the server.

        `path`: of the request.
        """
        refusal = self._refusal(server, right_of(path))
        if refusal is not None:
            if not self.allows(server):
                for watcher in self._watchers:
                    watcher(server)
            raise Forbidden(
                f"The policy of this server does not allow federation with you: {refusal}"
            )

    def pinned_keys(self, server: ServerName) -> Mapping[KeyID, bytes]:
        """Return the only keys that are accepted for a server.

        Empty if the server publishes its keys itself, or in a simulation.
        """
        member = None if self._rules.is_simulation else self._member(server)
        return _NO_KEYS if member is None else member.keys

    def _member(self, server: ServerName) -> Member | None:
        members = self.members if self._rules.has_member_list else None
        return None if members is None else members.members.get(server.lower())

    def _refusal(self, server: ServerName, right: Right | None) -> str | None:
        """Return the reason of a refusal, or None if the server is allowed or in a simulation."""
        refusal = self.find_refusal(server, right)
        if refusal is None or not self._rules.is_simulation:
            return refusal
        self._log_refusal(server, right, refusal)
        return None

    def find_refusal(self, server: ServerName, right: Right | None = None) -> str | None:
        """Return the reason why the rules refuse the server, also in a simulation, or None."""
        rules = self._rules
        if server == self._own:
            return None
        if not rules.enabled:
            return "federation is switched off"
        refusal = _find_pattern_refusal(rules, server)
        if refusal is not None:
            return refusal
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

    def _notify_listeners(self) -> None:
        self._logged.clear()
        for listener in self._listeners:
            listener()

    def _log_refusal(self, server: ServerName, right: Right | None, refusal: str) -> None:
        now, key = self._seconds(), (server, right)
        if now < (self._logged.peek(key) or now):
            return
        self._log.warn(
            "simulation: the policy would refuse {server}: {refusal}",
            server=server,
            refusal=refusal,
        )
        self._logged.put(key, now + SIMULATION_LOG_SECONDS)


def _find_pattern_refusal(rules: PolicyRules, server: ServerName) -> str | None:
    """Return the reason why the patterns refuse the server, or None."""
    if rules.denied is not None and _is_denied(rules.denied, server):
        return "that server is blocked here"
    if rules.allowed is not None and not rules.allowed.match(server):
        return "that server is not among those that are allowed here"
    return None


def _is_denied(denied: ServerPatterns, server: str) -> bool:
    host = host_of(server)
    # a trailing dot leads to the same host
    return any(denied.match(name) for name in (server, host, host.rstrip(".")))


def _check(expression: str, pattern: str) -> str:
    try:
        re.compile(expression)
    except re.error as error:
        raise InvalidPattern(f"{pattern} is no valid regular expression: {error}") from error
    return expression
