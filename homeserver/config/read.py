"""Converts the parsed YAML of a configuration into sections of options, and checks the values.

A section is a dataclass of options (`option.py`). Each wrong value becomes a `Problem`, and the
option gets its default, so that one run shows all errors. Unknown keys go to `ReadState.unknown`;
`load.py` decides about them. The former name of a renamed option is accepted as a key, and recorded
in `ReadState.former`.

A secret is looked up in these places, in this order:

1. the environment variable `MAHALLA_` plus the option's path in capitals,
2. the file whose path is in the environment variable of the same name plus `_FILE`,
3. the configuration: either the option itself, or the file whose path is in the key `<option>_path`
   or `<option>_file`. More than one of these three keys is an error.

An option of type `Mapping[str, Secret]` holds several named secrets. In the environment and in a
file, it is a YAML mapping of names to secrets.
"""

import ipaddress
import re
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, field, fields, is_dataclass
from functools import cache
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, cast, get_args, get_origin, get_type_hints

from homeserver.config.option import (
    JSON,
    Description,
    Duration,
    Network,
    Permissions,
    Secret,
    Size,
    get_default,
    get_description,
)
from homeserver.config.yaml_text import InvalidYaml, Place, parse_yaml

ENVIRONMENT_PREFIX = "MAHALLA_"
SECRET_FILE_SUFFIXES = ("_path", "_file")

DURATION_UNITS = {
    "s": 1000,
    "m": 60_000,
    "h": 3_600_000,
    "d": 86_400_000,
    "w": 604_800_000,
    "y": 31_536_000_000,
}
SIZE_UNITS = {"K": 1024, "M": 1024**2, "G": 1024**3, "T": 1024**4}
FORMATTED_DURATION_UNITS = {unit: DURATION_UNITS[unit] for unit in "dhms"}
FORMATTED_SIZE_UNITS = {unit: SIZE_UNITS[unit] for unit in "GMK"}
BOOLEAN_WORDS = {"yes": True, "on": True, "no": False, "off": False}


@dataclass(frozen=True, slots=True)
class Problem:
    """An error in one value. `str()` is a sentence for people, without the file name."""

    place: Place
    text: str

    def __str__(self) -> str:
        return f"{format_place(self.place)}: {self.text}" if self.place else self.text


@dataclass(slots=True)
class ReadState:
    """The state while files are read: the inputs and the problems found so far."""

    folder: Path
    """The folder where relative paths start."""
    environment: Mapping[str, str]
    problems: list[Problem] = field(default_factory=list)
    unknown: list[tuple[Place, Any, Mapping[str, str]]] = field(default_factory=list)
    """Unknown keys: the place, the value, and the known keys of that section: each spelling with
    the current one."""
    former: dict[Place, Place] = field(default_factory=dict)
    """The options that the file sets by a former key: the current place, and the one in the
    file."""
    former_variables: dict[str, str] = field(default_factory=dict)
    """The secrets that the environment sets by a former name: the former name, and the current
    one."""
    used: set[Place] = field(default_factory=set)
    """The options that the file sets."""

    def add_problem(self, place: Place, text: str) -> None:
        self.problems.append(Problem(place, text))


class InvalidValue(Exception):
    """A value does not fit its option. `str()` says what is expected."""


def format_place(place: Place) -> str:
    """Format a place: `("listeners", 0, "port")` becomes `listeners[0].port`."""
    text = ""
    for step in place:
        text += f"[{step}]" if isinstance(step, int) else f".{step}" if text else step
    return text


def format_value(value: object) -> str:
    """Format a value for an error message, shortened."""
    text = "nothing" if value is None else repr(value)
    return text if len(text) <= 60 else text[:57] + "…"


def types_of(kind: type[Any]) -> Mapping[str, Any]:
    """Return the type of each option of a section."""
    return _types_of(cast(Hashable, kind))


_types_of = cache(get_type_hints)
"""Cached: evaluating the annotations takes longer than reading a file."""


def read_section(
    kind: type[Any], values: Mapping[str, Any], place: Place, reading: ReadState
) -> Any:
    """Make a section of type `kind` from the mapping at `place`. Return None if a required option
    is missing."""
    known: dict[str, str] = {}
    options = read_fields(kind, values, place, reading, known)
    for key in values:
        if key not in known:
            reading.unknown.append(((*place, key), values[key], known))
    return None if options is None else kind(**options)


def rename_former_keys(
    kind: type[Any], values: Mapping[str, Any], place: Place, reading: ReadState
) -> Mapping[str, Any]:
    """Return the mapping at `place` with the current keys of options instead of the former ones.

    Former keys go to `ReadState.former`. An option under both keys is a problem.
    """
    current_keys: dict[str, str] = {}
    for declared in fields(kind):
        current_keys |= _accepted_keys(kind, declared)
    renamed: dict[str, Any] = {}
    for key, value in values.items():
        current = current_keys.get(key, key)
        if current != key and current in values:
            shown = format_place((*place, current))
            reading.add_problem(
                (*place, key), f"is the former name of {shown}, which is given too; remove {key}"
            )
            continue
        if current != key:
            reading.former[(*place, current)] = (*place, key)
        renamed[current] = value
    return renamed


def _accepted_keys(kind: type[Any], declared: Field[Any]) -> dict[str, str]:
    """Return the keys that set an option, also former ones, each with its current spelling. A
    secret has more keys, for a file with it."""
    suffixes = ("", *SECRET_FILE_SUFFIXES) if is_secret(types_of(kind)[declared.name]) else ("",)
    former = get_description(declared).formerly
    return {
        name + suffix: declared.name + suffix
        for name in (declared.name, former)
        if name is not None
        for suffix in suffixes
    }


def read_fields(
    kind: type[Any],
    values: Mapping[str, Any],
    place: Place,
    reading: ReadState,
    known: dict[str, str],
) -> dict[str, Any] | None:
    """Read the options of `kind` from `values`. Add the looked-up keys to `known`, each with its
    current spelling. Return None if a required option is missing."""
    types = types_of(kind)
    options: dict[str, Any] = {}
    complete = True
    for declared in fields(kind):
        here = (*place, declared.name)
        known |= _accepted_keys(kind, declared)
        description = get_description(declared)
        default = get_default(declared)
        found = values.get(declared.name, MISSING)
        if found is not MISSING:
            reading.used.add(here)
        if is_secret(types[declared.name]):
            found = _find_secret(declared, types[declared.name], values, place, reading, found)
        elif is_dataclass(types[declared.name]) and found in (MISSING, None):
            found = {}  # a secret in the section may come from the environment
        if found is MISSING:
            if default is MISSING:
                reading.add_problem(
                    here,
                    "is required"
                    + (f", as in {description.example}" if description.example else ""),
                )
                complete = False
            options[declared.name] = default
            continue
        try:
            value = read_value(types[declared.name], found, here, reading, default)
            check_bounds(value, types[declared.name], description)
        except InvalidValue as unfit:
            shown = "a secret" if is_secret(types[declared.name]) else format_value(found)
            reading.add_problem(here, f"got {shown}; {unfit}")
            complete = complete and default is not MISSING
            value = default
        options[declared.name] = value
    return options if complete else None


def is_secret(kind: Any) -> bool:
    """Return whether the type is `Secret`, `Secret | None` or `Mapping[str, Secret]`."""
    return kind is Secret or Secret in get_args(kind)


def is_mapping(kind: Any) -> bool:
    """Return whether the type is a mapping of names to values of one type."""
    origin = get_origin(kind)
    return isinstance(origin, type) and issubclass(origin, Mapping)


def _find_secret(
    declared: Field[Any],
    kind: Any,
    values: Mapping[str, Any],
    place: Place,
    reading: ReadState,
    found: Any,
) -> Any:
    name = declared.name
    here = (*place, name)
    variable = _find_variable(declared, place, reading)
    if variable in reading.environment:
        return _parse_secret(kind, reading.environment[variable], here, reading)
    if f"{variable}_FILE" in reading.environment:
        return _secret_in_file(kind, reading.environment[f"{variable}_FILE"], here, reading)
    for suffix in SECRET_FILE_SUFFIXES:
        path = values.get(name + suffix)
        if path is None:
            continue
        here = (*place, name + suffix)
        reading.used.add(here)
        if found is not MISSING and found is not None:
            reading.add_problem(here, f"is given, and so is {name}; one of them is enough")
        elif not isinstance(path, str):
            reading.add_problem(here, f"got {format_value(path)}; want the path of a file")
        else:
            found = _secret_in_file(kind, path, here, reading)
    return found


def _parse_secret(kind: Any, text: str, place: Place, reading: ReadState) -> Any:
    """Parse the text of a secret in the environment or in a file of its own."""
    if not is_mapping(kind):
        return text
    try:
        return parse_yaml(text).values
    except InvalidYaml as error:
        reading.add_problem(place, f"got a secret; want YAML with names and values: {error}")
        return MISSING


def _find_variable(declared: Field[Any], place: Place, reading: ReadState) -> str:
    """Return the environment variable of a secret: the former one if only that is set."""
    variable = environment_name((*place, declared.name))
    formerly = get_description(declared).formerly
    if formerly is None:
        return variable
    former = environment_name((*place, formerly))
    if not {former, f"{former}_FILE"} & set(reading.environment):
        return variable
    if {variable, f"{variable}_FILE"} & set(reading.environment):
        text = f"is in the environment as {variable} and by its former name {former}; remove one"
        reading.add_problem((*place, declared.name), text)
        return variable
    reading.former_variables[former] = variable
    return former


def _secret_in_file(kind: Any, path: str, place: Place, reading: ReadState) -> Any:
    try:
        text = (reading.folder / path).read_text(encoding="utf-8").strip()
        return _parse_secret(kind, text, place, reading)
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        reading.add_problem(place, f"cannot read {path}: {reason}")
        return MISSING


def environment_name(place: Place) -> str:
    """Return the environment variable that overrides the secret at `place`, such as
    `MAHALLA_REGISTRATION_SHARED_SECRET`."""
    return ENVIRONMENT_PREFIX + "_".join(str(step) for step in place).upper()


def read_value(kind: Any, found: Any, place: Place, reading: ReadState, default: Any = None) -> Any:
    """Convert one value to the type `kind`. Raises `InvalidValue`; problems inside a section go to
    `reading`."""
    if kind is JSON:
        return found
    origin = get_origin(kind)
    if origin in (Union, UnionType):
        if found is None:
            return None
        (inner,) = (each for each in get_args(kind) if each is not NoneType)
        return read_value(inner, found, place, reading, default)
    if is_dataclass(kind):
        return _read_inner_section(kind, found, place, reading, default)
    if origin is tuple:
        return _read_list(get_args(kind)[0], found, place, reading)
    if is_mapping(kind):
        return _read_mapping(get_args(kind)[1], found, place, reading)
    if origin is Literal:
        return _read_choice(get_args(kind), found)
    return _read_plain(kind, found, reading)


def _read_inner_section(
    kind: Any, found: Any, place: Place, reading: ReadState, default: Any
) -> Any:
    if not isinstance(found, dict):
        raise InvalidValue(f"want a section with {', '.join(each.name for each in fields(kind))}")
    current = rename_former_keys(kind, found, place, reading)
    made = read_section(kind, with_defaults(kind, default, current), place, reading)
    return default if made is None else made


def with_defaults(kind: Any, default: Any, found: Mapping[str, Any]) -> Mapping[str, Any]:
    """Fill in a rate limit's own defaults (`rc_login: {…}`) where the file sets only a part."""
    if not isinstance(default, kind) or any(
        is_dataclass(getattr(default, each.name)) for each in fields(kind)
    ):
        return found
    own = {each.name: getattr(default, each.name) for each in fields(kind)}
    return {**{name: value for name, value in own.items() if _is_plain_number(value)}, **found}


def _is_plain_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _read_list(kind: Any, found: Any, place: Place, reading: ReadState) -> tuple[Any, ...]:
    if not isinstance(found, list):
        raise InvalidValue("want a list")
    values = []
    for at, each in enumerate(found):
        try:
            values.append(read_value(kind, each, (*place, at), reading))
        except InvalidValue as unfit:
            reading.add_problem((*place, at), f"got {format_value(each)}; {unfit}")
    return tuple(value for value in values if value is not None)


def _read_mapping(kind: Any, found: Any, place: Place, reading: ReadState) -> dict[str, Any]:
    if not isinstance(found, dict):
        raise InvalidValue("want names with values")
    values = {}
    for name, each in found.items():
        try:
            values[name] = read_value(kind, each, (*place, name), reading)
        except InvalidValue as unfit:
            shown = "a secret" if is_secret(kind) else format_value(each)
            reading.add_problem((*place, name), f"got {shown}; {unfit}")
    if is_dataclass(kind):  # a missing option in a section is already reported
        return {name: value for name, value in values.items() if value is not None}
    return values


def _read_choice(choices: Sequence[object], found: Any) -> object:
    word = (
        BOOLEAN_WORDS.get(found.lower(), found)
        if isinstance(found, str) and True in choices
        else found
    )
    for choice in choices:
        if choice == word and isinstance(choice, bool) == isinstance(word, bool):
            return choice
    if found is False and "off" in choices:  # `off` in YAML 1.1
        return "off"
    raise InvalidValue(f"want one of {', '.join(_yaml_word(choice) for choice in choices)}")


def _yaml_word(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _read_plain(kind: Any, found: Any, reading: ReadState) -> Any:
    if kind is bool:
        return _read_bool(found)
    if kind is int or kind is float:
        if _is_plain_number(found) and (kind is float or isinstance(found, int)):
            return kind(found)
        raise InvalidValue("want a whole number" if kind is int else "want a number")
    if kind is Duration:
        return Duration(_with_unit(found, DURATION_UNITS, "a duration such as 30s, 5m, 24h or 7d"))
    if kind is Size:
        return Size(_with_unit(found, SIZE_UNITS, "a size such as 512K, 50M or 2G"))
    if kind is Permissions:
        return _read_permissions(found)
    text = _read_text(found)
    if kind is Path:
        return reading.folder / text
    if kind is Network:
        try:
            ipaddress.ip_network(text, strict=False)
        except ValueError as error:
            raise InvalidValue("want an address range such as 10.0.0.0/8") from error
        return Network(text)
    if kind in (str, Secret):
        return kind(text)
    raise TypeError(f"an option cannot be of type {kind}")


def _read_bool(found: Any) -> bool:
    if isinstance(found, bool):
        return found
    if isinstance(found, str) and found.lower() in BOOLEAN_WORDS:
        return BOOLEAN_WORDS[found.lower()]
    raise InvalidValue("want true or false")


def _read_permissions(found: Any) -> Permissions:
    if isinstance(found, str) and re.fullmatch(r"0[0-7]{3,4}", found):  # octal in YAML 1.1
        return Permissions(int(found, 8))
    if _is_plain_number(found) and isinstance(found, int):
        return Permissions(found)
    raise InvalidValue("want permissions such as 0o660")


def _read_text(found: Any) -> str:
    if isinstance(found, str):
        return found
    if isinstance(found, int) and not isinstance(found, bool):
        return str(found)
    if isinstance(found, float | bool):
        raise InvalidValue("want text: put it in quotes")
    raise InvalidValue("want text")


def _with_unit(found: Any, units: Mapping[str, int], wanted: str) -> int:
    if _is_plain_number(found) and isinstance(found, int):
        return found
    matched = (
        re.fullmatch(r"(-?[0-9]{1,15})\s*([A-Za-z]?)", found) if isinstance(found, str) else None
    )
    if matched is None or (matched[2] and matched[2] not in units):
        raise InvalidValue(f"want {wanted}")
    return int(matched[1]) * units.get(matched[2], 1)


def format_number(number: float, value_type: Any) -> str:
    """Format a number as in the file: a duration or size gets the largest unit that divides it."""
    kind = without_none(value_type)
    if kind is Permissions:
        return f"0o{number:03o}"
    units = (
        FORMATTED_DURATION_UNITS
        if kind is Duration
        else FORMATTED_SIZE_UNITS
        if kind is Size
        else {}
    )
    for unit, factor in units.items():
        if number and number % factor == 0:
            return f"{number // factor:.0f}{unit}"
    return str(number)


def without_none(value_type: Any) -> Any:
    """Return the type of an optional option without None."""
    inner = [each for each in get_args(value_type) if each is not NoneType]
    return inner[0] if len(inner) == 1 and NoneType in get_args(value_type) else value_type


def check_bounds(value: Any, value_type: Any, description: Description) -> None:
    """Check a value against the bounds of its option. Raises `InvalidValue`."""
    if value is None:
        return
    if _is_plain_number(value):
        if description.minimum is not None and value < description.minimum:
            raise InvalidValue(f"must be at least {format_number(description.minimum, value_type)}")
        if description.maximum is not None and value > description.maximum:
            raise InvalidValue(f"must be at most {format_number(description.maximum, value_type)}")
    if description.check is not None and (problem := description.check(value)):
        raise InvalidValue(problem)


def iterate_options(kind: type[Any], place: Place = ()) -> Iterator[tuple[Place, Any, Field[Any]]]:
    """Iterate over all options of a section and its inner sections, with place, type and
    declaration."""
    types = types_of(kind)
    for declared in fields(kind):
        here = (*place, declared.name)
        yield here, types[declared.name], declared
        if is_dataclass(types[declared.name]):
            yield from iterate_options(types[declared.name], here)
