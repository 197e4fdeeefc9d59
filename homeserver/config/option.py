"""Declares options, and defines the types that they may have.

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Sessions:
        session_lifetime: Duration | None = option(
            None, "After how long every session ends.", example="24h"
        )

One declaration holds the type, the default, the bounds, and the text for the sample file and the
docs. `homeserver.config.read` checks values from YAML against it. A section is a frozen dataclass
whose fields are options or other sections.

Types that an option may have: str, int, float, bool, `Duration`, `Size`, `Permissions`, `Network`,
`Secret`, `Path` (a relative one starts at the folder of the first configuration file), a `Literal`,
`tuple[X, ...]`, `Mapping[str, X]`, `JSON`, another section, and any of these with `| None`.
"""

from collections.abc import Callable, Mapping
from dataclasses import MISSING, Field, dataclass, field
from typing import Any, NewType, TypeVar, cast

T = TypeVar("T")

Duration = NewType("Duration", int)
"""Milliseconds. In YAML a number of milliseconds, or a number with a unit: `30s`, `5m`, `24h`,
`7d`, `2w`, `1y`."""

Size = NewType("Size", int)
"""Bytes. In YAML a number of bytes, or a number with a unit: `512K`, `50M`, `2G` (powers of
1024)."""

Permissions = NewType("Permissions", int)
"""Permission bits of a file. In YAML octal, as `0o660` or in the old form `0660`."""

Network = NewType("Network", str)
"""An IP range (`10.0.0.0/8`, `fe80::/10`), or one address."""


class Secret(str):
    """A secret value. Its `repr` hides it. It may be in a file of its own or in the environment."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "<secret>"


JSON = str | int | float | bool | None | list[Any] | dict[str, Any]
"""Any YAML value, unchecked, for content that is only passed on."""


@dataclass(frozen=True, slots=True)
class Description:
    """The metadata of an option besides its name, its type and its default."""

    help: str
    minimum: float | None = None
    maximum: float | None = None
    example: str | None = None
    """The value in the sample file, as YAML, if the default is not helpful."""
    not_implemented: bool = False
    """The option is known but not implemented yet; `config check` and start-up say so."""
    check: Callable[[Any], str | None] | None = None
    """A further check of the value. Returns what is wrong, as in `must be …`, or None."""
    formerly: str | None = None
    """The key that the option had in the previous release, in the same section. It still works,
    with a notice."""


def option(
    default: T,
    help: str,
    *,
    minimum: float | None = None,
    maximum: float | None = None,
    example: str | None = None,
    not_implemented: bool = False,
    check: Callable[[Any], str | None] | None = None,
    formerly: str | None = None,
) -> T:
    """Declare an option with a default. `minimum` and `maximum` are in the unit of the value
    (bytes, milliseconds). `formerly`: remove it after one release."""
    metadata = {
        "description": Description(
            help, minimum, maximum, example, not_implemented, check, formerly
        )
    }
    if isinstance(default, dict):
        return field(default_factory=lambda: default, metadata=metadata)
    return field(default=default, metadata=metadata)


def required(
    help: str,
    *,
    minimum: float | None = None,
    maximum: float | None = None,
    example: str | None = None,
    check: Callable[[Any], str | None] | None = None,
    formerly: str | None = None,
) -> Any:
    """Declare an option without a default: the configuration must set it."""
    description = Description(help, minimum, maximum, example, check=check, formerly=formerly)
    return field(metadata={"description": description})


def section(kind: type[T], help: str, *, not_implemented: bool = False) -> T:
    """Declare a section inside a section. If it is missing, its options have their defaults."""
    return field(
        default_factory=kind,
        metadata={"description": Description(help, not_implemented=not_implemented)},
    )


def get_description(declared: Field[Any]) -> Description:
    """Return the description of a field of a section."""
    described = cast(Mapping[str, object], declared.metadata)["description"]
    assert isinstance(described, Description)
    return described


def get_default(declared: Field[Any]) -> Any:
    """Return the default of a field, or MISSING for a required one."""
    if declared.default_factory is not MISSING:
        return declared.default_factory()
    return declared.default
