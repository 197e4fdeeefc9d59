"""Parses YAML into Python values, and records the line number of each value.

Values without quotes are read by the core schema of YAML 1.2, because YAML 1.1 would turn `no` into
false and `12:30` into 750. So `no`, `on`, `off`, `12:30` and dates are text. A repeated key is an
error. Boolean options still accept `yes`, `no`, `on` and `off`, which `read.py` converts.
"""

import re
from dataclasses import dataclass, field
from typing import Any

import yaml

Place = tuple[str | int, ...]
"""The path of a value: the keys and list positions that lead to it."""

MAX_VALUES = 100_000
"""More values than any configuration has. Stops files whose aliases expand without limit."""

MAX_DEPTH = 50

_TRUE = {"true", "True", "TRUE"}
_FALSE = {"false", "False", "FALSE"}
_NULL = {"", "~", "null", "Null", "NULL"}
_INT = re.compile(r"-?(0|[1-9][0-9]{0,17})")
_OCTAL_OR_HEX = re.compile(r"0o[0-7]{1,20}|0x[0-9a-fA-F]{1,15}")
_FLOAT = re.compile(r"-?(0|[1-9][0-9]*)?(\.[0-9]+)?([eE][-+]?[0-9]{1,3})?")


class InvalidYaml(Exception):
    """The text is not valid YAML, or not a configuration. `str()` says what is wrong and where."""


@dataclass(slots=True)
class YamlDocument:
    """The values of a file, and their line numbers."""

    values: dict[str, Any] = field(default_factory=dict)
    lines: dict[Place, int] = field(default_factory=dict)


def parse_yaml(text: str) -> YamlDocument:
    """Parse one YAML document whose top level is a mapping. Raises `InvalidYaml`."""
    try:
        top = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        where = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        raise InvalidYaml(f"{where}{error.problem or error.context or 'not valid YAML'}") from error
    except yaml.YAMLError as error:
        raise InvalidYaml(str(error)) from error
    if top is None:
        return YamlDocument()
    if not isinstance(top, yaml.MappingNode):
        raise InvalidYaml(
            f"line {top.start_mark.line + 1}: a configuration has the form `key: value`"
        )
    document = YamlDocument()
    document.values = _value(top, (), document.lines)
    return document


def _value(node: yaml.Node, place: Place, lines: dict[Place, int]) -> Any:
    lines.setdefault(place, node.start_mark.line + 1)
    if len(lines) > MAX_VALUES or len(place) > MAX_DEPTH:
        raise InvalidYaml(f"line {node.start_mark.line + 1}: too many values")
    if isinstance(node, yaml.ScalarNode):
        return _scalar(node)
    if isinstance(node, yaml.SequenceNode):
        return [_value(each, (*place, at), lines) for at, each in enumerate(node.value)]
    values: dict[str, Any] = {}
    merged: dict[str, Any] = {}
    for key_node, value_node in node.value:
        line = key_node.start_mark.line + 1
        if not isinstance(key_node, yaml.ScalarNode):
            raise InvalidYaml(f"line {line}: a key must be text")
        key = key_node.value
        if key == "<<" and key_node.style is None:
            for each in (
                value_node.value if isinstance(value_node, yaml.SequenceNode) else [value_node]
            ):
                if not isinstance(each, yaml.MappingNode):
                    raise InvalidYaml(f"line {line}: `<<` can only merge mappings")
                merged = _value(each, place, lines) | merged
            continue
        if key in values:
            first = lines[(*place, key)]
            raise InvalidYaml(f"line {line}: {key} is already set in line {first}; remove one")
        lines[(*place, key)] = line
        values[key] = _value(value_node, (*place, key), lines)
    return merged | values


def _scalar(node: yaml.ScalarNode) -> str | int | float | bool | None:
    text: str = node.value
    tag = node.tag.removeprefix("tag:yaml.org,2002:")
    if node.style is not None:
        return text
    if tag not in {"str", "int", "float", "bool", "null", "timestamp", "value", "merge"}:
        raise InvalidYaml(
            f"line {node.start_mark.line + 1}: {node.tag} is not allowed in a configuration"
        )
    if text in _TRUE:
        return True
    if text in _FALSE:
        return False
    if text in _NULL:
        return None
    if _INT.fullmatch(text):
        return int(text)
    if _OCTAL_OR_HEX.fullmatch(text):
        return int(text, 0)
    if any(sign.isdigit() for sign in text) and _FLOAT.fullmatch(text):
        return float(text)
    return text
