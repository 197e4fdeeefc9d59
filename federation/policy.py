"""With whom this server talks. Consulted everywhere a server name comes in or is to be contacted.

Laws:
- What is allowed is matched by the whole server name, port included. What is denied is matched by the host too, so that a
  port more in its name helps nobody. Letters count in either case. What is denied stays denied, whatever allows it.
- Our own name is always allowed.
- The rules may be changed while the server runs; nobody keeps an answer.
"""

import re
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import Final

from twisted.logger import Logger

from federation.protocol.errors import Forbidden
from federation.protocol.ids import ServerName, host_of

SECONDS_BETWEEN_LINES: Final = 3600.0
"""In which a server is named once in the log where refusals are only simulated."""
MAX_NAMED: Final = 10_000


class BadPattern(ValueError):
    """A pattern for server names that is none."""


class ServerPatterns:
    """Names (`a.example`), names with wildcards (`*.example`, `?`), and regular expressions (`/[a-z]+[.]example/`)."""

    def __init__(self, patterns: Iterable[str]) -> None:
        """Raises BadPattern."""
        names, expressions = set(), []
        for pattern in patterns:
            if len(pattern) > 2 and pattern.startswith("/") and pattern.endswith("/"):
                expressions.append(_check(pattern[1:-1], pattern))
            elif "*" in pattern or "?" in pattern:
                expressions.append(re.escape(pattern.lower()).replace(r"\*", ".*").replace(r"\?", "."))
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


@dataclass(frozen=True, slots=True)
class PolicyRules:
    """What the configuration says."""

    allowed: ServerPatterns | None = None
    """The only servers to talk with; None: all."""
    denied: ServerPatterns | None = None
    enabled: bool = True
    """False: no other server at all."""
    is_simulation: bool = False
    """Refuse nothing, and say in the log what would be refused."""


def make_rules(
    allowed: Collection[str] | None,
    denied: Collection[str] = (),
    *,
    enabled: bool = True,
    is_simulation: bool = False,
) -> PolicyRules:
    """Rules of patterns as text. Raises BadPattern."""
    return PolicyRules(
        None if allowed is None else ServerPatterns(allowed),
        ServerPatterns(denied) if denied else None,
        enabled,
        is_simulation,
    )


class Policy:
    """The policy in force."""

    _log = Logger()

    def __init__(self, own: ServerName, rules: PolicyRules, seconds: Callable[[], float]) -> None:
        """`own`: this server's name; `seconds`: the time."""
        self._own = own
        self._rules = rules
        self._seconds = seconds
        self._named: dict[str, float] = {}

    def change(self, rules: PolicyRules) -> None:
        """Other rules from now on."""
        self._rules = rules
        self._named.clear()

    def allows(self, server: ServerName) -> bool:
        """Whether this server talks with that one, and believes what is said in its name, at all."""
        if self._is_within_rules(server):
            return True
        if not self._rules.is_simulation:
            return False
        self._name(server)
        return True

    def check_destination(self, server: ServerName) -> None:
        """Raises Forbidden, with a text for the person who wanted to reach somebody there."""
        if not self.allows(server):
            raise Forbidden(f"The policy of this server does not allow federation with {server}")

    def check_origin(self, server: ServerName) -> None:
        """Raises Forbidden, with a text for the server that asks."""
        if not self.allows(server):
            raise Forbidden("The policy of this server does not allow federation with you")

    def _is_within_rules(self, server: ServerName) -> bool:
        rules = self._rules
        if server == self._own:
            return True
        if not rules.enabled:
            return False
        if rules.denied is not None and (rules.denied.match(server) or rules.denied.match(host_of(server))):
            return False
        return rules.allowed is None or rules.allowed.match(server)

    def _name(self, server: ServerName) -> None:
        now = self._seconds()
        if now < self._named.get(server, now):
            return
        self._log.warn("the policy would refuse {server}, were it not simulated", server=server)
        self._named.pop(server, None)
        self._named[server] = now + SECONDS_BETWEEN_LINES
        if len(self._named) > MAX_NAMED:
            del self._named[next(iter(self._named))]


def _check(expression: str, pattern: str) -> str:
    try:
        re.compile(expression)
    except re.error as error:
        raise BadPattern(f"{pattern} is no regular expression: {error}") from error
    return expression
