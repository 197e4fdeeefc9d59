"""The table of paths: which declared path a request's path is, and the values in it.

A path is split before it is decoded, so that an encoded slash stays inside its segment. A literal
segment wins over a parameter. A slash at the end that no declaration has is forgiven.
"""

from collections.abc import Iterator
from functools import lru_cache
from typing import Final, Generic, TypeVar
from urllib.parse import unquote_to_bytes

import msgspec

from federation.protocol.errors import InvalidParam

T = TypeVar("T")

MAX_REMEMBERED: Final = 255
REMEMBERED: Final = 512


class _Node(msgspec.Struct, Generic[T]):
    literals: "dict[str, _Node[T]]" = msgspec.field(default_factory=dict)
    parameter: "_Node[T] | None" = None
    beside: "dict[str, _Node[T]] | None" = None
    """Of a parameter: the literals that come first in its place."""
    may_be_empty: bool = False
    leaf: T | None = None


def split_path(path: bytes) -> list[str]:
    """The decoded segments of a request's path. Raises `InvalidParam` for bytes that are not UTF-8,
    and for NUL."""
    try:
        segments = path[1:].decode().split("/")
        if b"%" in path:
            segments = [_unescape(segment) if "%" in segment else segment for segment in segments]
    except UnicodeDecodeError:
        raise InvalidParam("The path is not valid UTF-8") from None
    if b"\0" in path or b"%00" in path:
        raise InvalidParam("The path has a NUL character in it")
    return segments


def _unescape(segment: str) -> str:
    """Raises `UnicodeDecodeError`."""
    return _remembered(segment) if len(segment) <= MAX_REMEMBERED else _unescape_anew(segment)


def _unescape_anew(segment: str) -> str:
    return unquote_to_bytes(segment).decode()


_remembered = lru_cache(REMEMBERED)(_unescape_anew)
"""Room ids, in most requests about a room."""


class PathTable(Generic[T]):
    """Maps paths such as `/rooms/{room_id}/members` to leaves."""

    def __init__(self) -> None:
        self._root: _Node[T] = _Node()
        self._whole: dict[bytes, _Node[T]] = {}
        """Paths without parameters, which are found at once as they stand."""

    def node(self, path: str, *, may_be_empty: frozenset[str] = frozenset()) -> "_Node[T]":
        """The node of a declared path, made if need be; the caller sets its `leaf`."""
        node = self._root
        for segment in path[1:].split("/"):
            if segment.startswith("{") and segment.endswith("}"):
                if node.parameter is None:
                    node.parameter = _Node(beside=node.literals)
                node = node.parameter
                node.may_be_empty = node.may_be_empty or segment[1:-1] in may_be_empty
            else:
                node = node.literals.setdefault(segment, _Node())
        if "{" not in path:
            self._whole[path.encode()] = node
        return node

    def find(self, path: bytes) -> tuple[T, list[str], bool] | None:
        """The leaf at this path, the values of its parameters, in order, and whether any text may
        come last in its place. Raises `InvalidParam`."""
        whole = self._whole.get(path)
        if whole is not None and whole.leaf is not None:
            return whole.leaf, [], False
        if not path.startswith(b"/"):
            return None
        segments = split_path(path)
        values: list[str] = []
        node = self._find_straight(segments, values)
        if node is not None and node.leaf is not None:
            return node.leaf, values, node.beside == {}
        values = []
        leaf = _find(self._root, segments, 0, values)
        if leaf is None and len(segments) > 1 and not segments[-1]:
            leaf = _find(self._root, segments[:-1], 0, values)
        return None if leaf is None else (leaf, values, False)

    def _find_straight(self, segments: list[str], values: list[str]) -> _Node[T] | None:
        """As `_find` finds most, without looking back: what it tries first."""
        node = self._root
        for segment in segments:
            following = node.literals.get(segment)
            if following is None:
                following = node.parameter
                if following is None or not (segment or following.may_be_empty):
                    return None
                values.append(segment)
            node = following
        return node

    def leaves(self) -> Iterator[T]:
        """Every leaf there is."""
        nodes = [self._root]
        while nodes:
            node = nodes.pop()
            if node.leaf is not None:
                yield node.leaf
            nodes.extend(node.literals.values())
            if node.parameter is not None:
                nodes.append(node.parameter)


def _find(node: _Node[T], segments: list[str], position: int, values: list[str]) -> T | None:
    if position == len(segments):
        return node.leaf
    segment = segments[position]
    literal = node.literals.get(segment)
    if literal is not None:
        leaf = _find(literal, segments, position + 1, values)
        if leaf is not None:
            return leaf
    parameter = node.parameter
    if parameter is None or not (segment or parameter.may_be_empty):
        return None
    values.append(segment)
    leaf = _find(parameter, segments, position + 1, values)
    if leaf is None:
        values.pop()
    return leaf
