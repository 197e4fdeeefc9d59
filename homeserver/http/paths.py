"""Maps request paths to declared paths and their parameter values.

A path is split before it is decoded, so an encoded slash stays inside its segment. A literal
segment wins over a parameter. A slash at the end is ignored, unless the declared path continues
there with a parameter that may be empty. Then the parameter is empty.
"""

from collections.abc import Iterator
from functools import lru_cache
from typing import Final, Generic, TypeVar
from urllib.parse import unquote_to_bytes

import msgspec

from federation.protocol.errors import InvalidParam

T = TypeVar("T")

MAX_CACHED_SEGMENT: Final = 255
CACHED_SEGMENTS: Final = 512


class _Node(msgspec.Struct, Generic[T]):
    literals: "dict[str, _Node[T]]" = msgspec.field(default_factory=dict)
    parameter: "_Node[T] | None" = None
    siblings: "dict[str, _Node[T]] | None" = None
    """For a parameter node: the sibling literals, which win over it."""
    may_be_empty: bool = False
    leaf: T | None = None


def split_path(path: bytes) -> list[str]:
    """Split a request path into decoded segments. Raises `InvalidParam` for invalid UTF-8 and
    NUL."""
    try:
        segments = path[1:].decode().split("/")
        if b"%" in path:
            segments = [_unescape(segment) if "%" in segment else segment for segment in segments]
    except UnicodeDecodeError:
        raise InvalidParam("The path is not valid UTF-8") from None
    if b"\0" in path or b"%00" in path:
        raise InvalidParam("The path contains a NUL character")
    return segments


def _unescape(segment: str) -> str:
    """Decode percent escapes. Raises `UnicodeDecodeError`."""
    return (
        _decode_segment_cached(segment)
        if len(segment) <= MAX_CACHED_SEGMENT
        else _decode_segment(segment)
    )


def _decode_segment(segment: str) -> str:
    return unquote_to_bytes(segment).decode()


_decode_segment_cached = lru_cache(CACHED_SEGMENTS)(_decode_segment)
"""Most requests about a room have its ID in the path."""


class PathTable(Generic[T]):
    """Maps path patterns such as `/rooms/{room_id}/members` to leaves."""

    def __init__(self) -> None:
        self._root: _Node[T] = _Node()
        self._literal_paths: dict[bytes, _Node[T]] = {}
        """The nodes of paths without parameters, found without splitting."""

    def add(self, path: str, *, may_be_empty: frozenset[str] = frozenset()) -> "_Node[T]":
        """Return the node of a declared path, and create it if needed. The caller sets its
        `leaf`."""
        node = self._root
        for segment in path[1:].split("/"):
            if segment.startswith("{") and segment.endswith("}"):
                if node.parameter is None:
                    node.parameter = _Node(siblings=node.literals)
                node = node.parameter
                node.may_be_empty = node.may_be_empty or segment[1:-1] in may_be_empty
            else:
                node = node.literals.setdefault(segment, _Node())
        if "{" not in path:
            self._literal_paths[path.encode()] = node
        return node

    def find(self, path: bytes) -> tuple[T, list[str], bool] | None:
        """Find the leaf of a path.

        Return the leaf, the values of its parameters in order, and whether the last segment may be
        any text. Raises `InvalidParam`.
        """
        literal = self._literal_paths.get(path)
        if literal is not None and literal.leaf is not None:
            return literal.leaf, [], False
        if not path.startswith(b"/"):
            return None
        segments = split_path(path)
        values: list[str] = []
        node = self._find_without_backtracking(segments, values)
        if node is not None and node.leaf is not None:
            return node.leaf, values, node.siblings == {}
        values = []
        leaf = _find(self._root, segments, 0, values)
        if leaf is None and len(segments) > 1 and not segments[-1]:
            leaf = _find(self._root, segments[:-1], 0, values)
        return None if leaf is None else (leaf, values, False)

    def _find_without_backtracking(self, segments: list[str], values: list[str]) -> _Node[T] | None:
        """Find a node without backtracking, which succeeds for most paths."""
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
        """Iterate over all leaves."""
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
