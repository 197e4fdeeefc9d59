"""Generates the sample configuration and the page `docs/operators/configuration.md`.

Both list all options, and are generated from the declarations of the options (`option.py`).
"""

import json
from collections.abc import Iterator
from dataclasses import MISSING, Field, fields, is_dataclass
from pathlib import Path
from textwrap import wrap
from typing import Any, Literal, get_args, get_origin, get_type_hints

from homeserver.config.configuration import GROUPS
from homeserver.config.load import REASONS, synapse_keys
from homeserver.config.option import (
    JSON,
    Duration,
    Network,
    Permissions,
    Secret,
    Size,
    get_default,
    get_description,
)
from homeserver.config.read import environment_name, format_number, is_secret, without_none
from homeserver.config.yaml_text import Place

WIDTH = 100

SAMPLE_HEAD = """\
# All options of a homeserver. Only `server_name` is required. Everything else is commented out, and
# shows its default or an example.
# `mahalla config check` lists the errors of a file, and the options without effect.
#
# Durations: 30s, 5m, 24h, 7d, 2w, 1y. Sizes: 512K, 50M, 2G. Paths are relative to the folder of
# this file. A secret can be in a separate file (`registration_shared_secret_path: FILE`) or in
# the environment (MAHALLA_REGISTRATION_SHARED_SECRET, or MAHALLA_REGISTRATION_SHARED_SECRET_FILE).
"""

DOCS_HEAD = """\
# All options

`homeserver.yaml` is one YAML file. [configure.md](configure.md) explains how to change and check
it. [`homeserver.yaml.sample`](../../homeserver.yaml.sample) shows every option with its default
or an example. This page and the sample are generated from the same declarations.

- An option has the same name as in Synapse if the meaning is the same.
- Durations are written `30s`, `5m`, `24h`, `7d`, `2w`, `1y`, or as a number of milliseconds. Sizes
  are written `512K`, `50M`, `2G`, or as a number of bytes. A path can be relative to the
  folder of the configuration file.
- A *secret* can also be in a separate file (option `NAME_path` or `NAME_file`) or in the
  environment (the named variable, or the same with `_FILE` for a file name). The environment takes
  precedence. A mapping of several secrets is written in either place as YAML:
  `calendar: a long random text`.
- A *section* contains the options whose names begin with its name. `…` in the name of an option or
  a variable stands for an entry of a list (0 for the first) or a name in a mapping.
- *Formerly*: the former name of the option, which is still accepted.
- *Not yet*: the option is accepted and checked, but has no effect yet.
"""


def write_sample() -> str:
    """Return the text of `homeserver.yaml.sample`."""
    lines = [SAMPLE_HEAD]
    for kind in GROUPS.values():
        lines.append(f"\n{'#' * 4} {_title(kind)}\n")
        for declared, value_type in _declarations(kind):
            lines.extend(_sample_option(declared, value_type, 0))
            lines.append("")
    return "\n".join(line.rstrip() for line in lines).rstrip() + "\n"


def _sample_option(declared: Field[Any], value_type: Any, depth: int) -> Iterator[str]:
    description = get_description(declared)
    default = get_default(declared)
    indent = "  " * depth
    prefix = "NOT YET: " if description.not_implemented else ""
    for line in wrap(prefix + description.help, WIDTH - 2 * depth, break_on_hyphens=False):
        yield f"#{indent}# {line}" if depth else f"# {line}"
    if default is MISSING:
        yield f"{declared.name}: {description.example}"
    elif isinstance(value_type, type) and is_dataclass(value_type) and not _is_limit(declared):
        yield f"#{indent}{declared.name}:"
        for inner, inner_type in _declarations(value_type):
            yield from _sample_option(inner, inner_type, depth + 1)
    else:
        text = description.example or format_default(default, value_type)
        yield f"#{indent}{declared.name}: {text}".replace("\n", "\n#").replace(": \n", ":\n")


def _is_limit(declared: Field[Any]) -> bool:
    """Return whether the option is a rate limit, which is shown on one line with its own
    defaults."""
    return is_dataclass(declared.default)


def format_default(value: Any, value_type: Any) -> str:
    """Format a default as YAML in one line."""
    kind = without_none(value_type)
    if value is None:
        return "null"
    if kind in (Duration, Size, Permissions):
        return format_number(value, kind)
    if is_dataclass(value) and not isinstance(value, type):
        hints = get_type_hints(type(value))
        inner = ", ".join(
            f"{each.name}: {format_default(getattr(value, each.name), hints[each.name])}"
            for each in fields(value)
        )
        return f"{{{inner}}}"
    if isinstance(value, tuple):
        item = get_args(kind)[0] if get_args(kind) else str
        return f"[{', '.join(format_default(each, item) for each in value)}]"
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, str) and value.replace("_", "").isalpha():
        return value if value not in {"on", "off", "yes", "no"} else f'"{value}"'
    return json.dumps(value, ensure_ascii=False)


def _declarations(kind: type[Any]) -> list[tuple[Field[Any], Any]]:
    hints = get_type_hints(kind)
    return [(declared, hints[declared.name]) for declared in fields(kind)]


def _title(kind: type[Any]) -> str:
    return (kind.__doc__ or kind.__name__).strip().rstrip(".")


def write_docs() -> str:
    """Return the text of `docs/operators/configuration.md`."""
    lines = [DOCS_HEAD]
    for kind in GROUPS.values():
        lines.append(f"## {_title(kind)}\n")
        lines.extend(_docs_section(kind, ()))
    lines.append("## Options of Synapse that have no effect here\n")
    by_reason: dict[str, list[str]] = {word: [] for word in REASONS}
    for key, word in synapse_keys().items():
        by_reason[word].append(f"`{key}`")
    for word, keys in by_reason.items():
        if keys:
            lines.append(f"- {REASONS[word]}: {', '.join(keys)}")
    return "\n".join(lines) + "\n"


def _docs_section(kind: type[Any], place: Place) -> Iterator[str]:
    for declared, value_type in _declarations(kind):
        here = (*place, declared.name)
        description = get_description(declared)
        default = get_default(declared)
        name = ".".join(str(step) for step in here)
        properties = [_type_name(value_type)]
        if is_dataclass(value_type) and not _is_limit(declared):
            properties = ["section"]
        elif default is MISSING:
            properties.append("required")
        elif declared.name == "listeners":
            properties.append("default port 8008 on loopback")
        elif not (isinstance(default, tuple) and len(default) > 5):
            properties.append(f"default `{format_default(default, value_type)}`")
        for word, bound in (("at least", description.minimum), ("at most", description.maximum)):
            if bound is not None and bound != 1:
                properties.append(f"{word} {format_number(bound, value_type)}")
        if is_secret(value_type):
            properties.append(f"secret, `{environment_name(here)}`")
        if description.formerly is not None:
            properties.append(f"formerly `{description.formerly}`")
        if description.not_implemented:
            properties.append("**not yet**")
        yield f"### `{name}`\n\n{description.help}\n\n*{', '.join(properties)}*\n"
        if description.example and "\n" in description.example:
            yield f"```yaml\n{declared.name}:{description.example}\n```\n"
        elif description.example:
            yield f"Example: `{declared.name}: {description.example}`\n"
        inner = _section_in(value_type)
        if inner is not None and not _is_limit(declared):
            yield from _docs_section(inner, here if inner is value_type else (*here, "…"))


def _section_in(value_type: Any) -> type[Any] | None:
    """Return the section that a type is, or that its list or mapping contains."""
    candidates = [value_type, *get_args(without_none(value_type))]
    return next(
        (each for each in candidates if isinstance(each, type) and is_dataclass(each)), None
    )


TYPE_NAMES: dict[Any, str] = {
    str: "text",
    int: "whole number",
    float: "number",
    bool: "true or false",
    Path: "path",
    Duration: "duration",
    Size: "size",
    Permissions: "permissions",
    Secret: "text",
    Network: "address range",
    JSON: "anything",
}


def _type_name(value_type: Any) -> str:
    kind = without_none(value_type)
    if kind in TYPE_NAMES:
        return TYPE_NAMES[kind]
    if is_dataclass(kind):
        return "section"
    if get_origin(kind) is Literal:
        return "one of " + ", ".join(f"`{str(each).lower()}`" for each in get_args(kind))
    if get_origin(kind) is tuple:
        return f"list of: {_type_name(get_args(kind)[0])}"
    return f"mapping of names to {_type_name(get_args(kind)[1])}"
