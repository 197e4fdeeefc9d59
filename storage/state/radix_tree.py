"""An immutable, content-addressed radix tree from small dense integers to positive integers.

This module does not use the database. The caller passes a function that loads nodes of the tree,
and new nodes are returned to the caller. `state_tree.py` stores them in the database. In its trees
the keys are the numbers of a room's (type, state_key) pairs, and the values are the numbers of
events (`event_nid`).

Laws:
- A node is a byte string that is read in place, so a lookup decodes only the values that it
  returns. The ID of a node is the hash of its bytes, so equal subtrees have the same ID and are
  stored once.
- Equal maps have equal roots, whatever the order of their changes: a tree is only as high as its
  highest key needs, and absent entries at the end of a node are not written.
- A key is set and never removed. The empty map has no root (None).
- Every node of a tree that `apply` returns is either among the new nodes or below the given root.
  `apply` does not assume that any other node still exists. Garbage collection depends on this.
- Nodes are loaded level by level, all nodes of a level in one batch.

Encoding: the first byte of a leaf is 0 if its values have 32 bits, and 255 if they have 64 bits.
The values follow, little-endian (0: absent). The first byte of an inner node is its height, at
least 1. The IDs of its children follow, 16 bytes each (all zero: absent). The sizes of nodes were
chosen by measurement (docs/adr/0004-state-tree.md).
"""

import struct
from collections.abc import Callable, Collection, Iterable, Mapping
from hashlib import blake2b

import msgspec

ID_SIZE = 16
ABSENT = bytes(ID_SIZE)
WIDE_LEAF = 255
NARROW_VALUE_LIMIT = 1 << 32

Load = Callable[[Iterable[bytes]], Mapping[bytes, bytes]]
"""Returns the contents of nodes by ID. The answer must have all of them."""

Get = Callable[[bytes], bytes | None]
"""Returns the content of a node if it is cached."""


class MissingNode(Exception):
    """A node that a tree refers to is missing. Either the database is damaged, or the root had been
    collected before."""


def compute_node_id(content: bytes) -> bytes:
    """Return the ID of a node. Its height is in its content, so nodes of different heights never
    share an ID."""
    return blake2b(content, digest_size=ID_SIZE, person=b"mahalla.state").digest()


def get_height(content: bytes) -> int:
    """Return the height of a node; 0 for a leaf."""
    head = content[0]
    return 0 if head == WIDE_LEAF else head


def get_child_ids(content: bytes) -> list[bytes]:
    """Return the IDs of an inner node's children that are present; none for a leaf."""
    if get_height(content) == 0:
        return []
    ids = (content[at : at + ID_SIZE] for at in range(1, len(content), ID_SIZE))
    return [child for child in ids if child != ABSENT]


def read_leaf(content: bytes) -> tuple[int, ...]:
    """Return the values of a leaf from its first key on; 0 is absent."""
    if content[0] == WIDE_LEAF:
        return struct.unpack_from(f"<{(len(content) - 1) // 8}Q", content, 1)
    return struct.unpack_from(f"<{(len(content) - 1) // 4}I", content, 1)


def write_leaf(values: list[int]) -> bytes:
    """Encode a leaf; the last value is not 0."""
    if max(values) < NARROW_VALUE_LIMIT:
        return struct.pack(f"<B{len(values)}I", 0, *values)
    return struct.pack(f"<B{len(values)}Q", WIDE_LEAF, *values)


class RadixTree(msgspec.Struct, frozen=True):
    """The operations on trees whose leaves hold 2**leaf_bits values and whose inner nodes have
    2**child_bits children."""

    leaf_bits: int = 6
    child_bits: int = 4

    def height_for(self, key: int) -> int:
        """Return the height of the lowest tree that has room for the key."""
        height, bits = 0, self.leaf_bits
        while key >> bits:
            height, bits = height + 1, bits + self.child_bits
        return height

    def find(self, get: Get, root: bytes, key: int) -> int | None:
        """Return the value of a key, 0 if it has none; None if a node on its path is not cached."""
        content = get(root)
        if content is None:
            return None
        height = content[0]
        if height == WIDE_LEAF:
            height = 0
        bits = self.leaf_bits + height * self.child_bits
        if key >> bits:
            return 0
        while height:
            bits -= self.child_bits
            at = 1 + ID_SIZE * (key >> bits)
            key &= (1 << bits) - 1
            child = content[at : at + ID_SIZE]
            if not child or child == ABSENT:
                return 0
            content = get(child)
            if content is None:
                return None
            height -= 1
        if content[0] == WIDE_LEAF:
            return int.from_bytes(content[1 + 8 * key : 9 + 8 * key], "little")
        return int.from_bytes(content[1 + 4 * key : 5 + 4 * key], "little")

    def find_all(self, get: Get, root: bytes, keys: Iterable[int]) -> list[int] | None:
        """Return the values of the keys in their order, 0 for those without one; None if a node on
        a path is not cached."""
        content = get(root)
        if content is None:
            return None
        if content[0] == 0:  # of most rooms the whole state is one leaf
            return [int.from_bytes(content[1 + 4 * key : 5 + 4 * key], "little") for key in keys]
        values: list[int] = []
        for key in keys:
            value = self.find(get, root, key)
            if value is None:
                return None
            values.append(value)
        return values

    def find_last_key(self, get: Get, root: bytes) -> int | None:
        """Return the highest key that has a value; None if a node on its path is not cached."""
        content = get(root)
        if content is None:
            return None
        key = 0
        for height in range(get_height(content), 0, -1):
            at = len(content) - ID_SIZE
            key += (at // ID_SIZE) << (self.leaf_bits + (height - 1) * self.child_bits)
            content = get(content[at:])
            if content is None:
                return None
        return key + (len(content) - 1) // (8 if content[0] == WIDE_LEAF else 4) - 1

    def count_keys(self, load: Load, roots: Iterable[bytes]) -> int:
        """Return one more than the highest key that has a value in any of these trees; 0 without
        any tree."""
        count = 0
        level = [(0, root) for root in roots]
        while level:
            nodes = self._load_all(load, {node for _, node in level})
            below: list[tuple[int, bytes]] = []
            for base, node in level:
                content = nodes[node]
                height = get_height(content)
                if height == 0:
                    count = max(count, base + len(read_leaf(content)))
                else:
                    last = (len(content) - 1) // ID_SIZE - 1
                    below.append(
                        (
                            base + (last << (self.leaf_bits + (height - 1) * self.child_bits)),
                            content[-ID_SIZE:],
                        )
                    )
            level = below
        return count

    def gather(self, load: Load, roots: Iterable[bytes], keys: Iterable[int]) -> dict[bytes, bytes]:
        """Load all nodes on the paths from the roots to the keys."""
        nodes: dict[bytes, bytes] = {}
        sorted_keys = sorted(set(keys))
        level: dict[bytes, Collection[int]] = dict.fromkeys(roots, sorted_keys)
        while level:
            nodes.update(self._load_all(load, level.keys() - nodes.keys()))
            # equal subtrees have one ID, so a node may be wanted for the keys of several places
            below: dict[bytes, set[int]] = {}
            for node, node_keys in level.items():
                content = nodes[node]
                height = get_height(content)
                if height == 0:
                    continue
                bits = self.leaf_bits + (height - 1) * self.child_bits
                limit = 1 << (bits + self.child_bits)
                mask = (1 << bits) - 1
                split: dict[int, list[int]] = {}
                for key in node_keys:
                    if key < limit:
                        split.setdefault(key >> bits, []).append(key & mask)
                for index, child_keys in split.items():
                    child = content[1 + ID_SIZE * index : 1 + ID_SIZE * (index + 1)]
                    if child and child != ABSENT:
                        below.setdefault(child, set()).update(child_keys)
            level = dict(below)
        return nodes

    def lookup(self, load: Load, root: bytes | None, keys: Iterable[int]) -> dict[int, int]:
        """Return the values of those of the keys that have one."""
        if root is None:
            return {}
        requested = list(keys)
        get = self.gather(load, [root], requested).get
        return {key: value for key in requested if (value := self.find(get, root, key))}

    def entries(self, load: Load, root: bytes | None) -> dict[int, int]:
        """Return the complete map, in order of keys."""
        if root is None:
            return {}
        values: list[tuple[int, tuple[int, ...]]] = []
        level: list[tuple[int, bytes]] = [(0, root)]
        while level:
            nodes = self._load_all(load, [node for _, node in level])
            below: list[tuple[int, bytes]] = []
            for base, node in level:
                content = nodes[node]
                height = get_height(content)
                if height == 0:
                    values.append((base, read_leaf(content)))
                    continue
                bits = self.leaf_bits + (height - 1) * self.child_bits
                for index, at in enumerate(range(1, len(content), ID_SIZE)):
                    child = content[at : at + ID_SIZE]
                    if child != ABSENT:
                        below.append((base + (index << bits), child))
            level = below
        return {
            key: value for base, leaf in values for key, value in enumerate(leaf, base) if value
        }

    def apply(
        self, load: Load, root: bytes | None, changes: Mapping[int, int]
    ) -> tuple[bytes | None, dict[bytes, bytes]]:
        """Set the changes. Return the new root, and by ID the nodes of its tree that the old one
        may lack.

        Values are ≥ 1. If nothing changes, the root is the old one and there are no new nodes.
        Raises ValueError for a negative key or a value below 1.
        """
        if not changes:
            return root, {}
        items = sorted(changes.items())
        if items[0][0] < 0 or min(value for _, value in items) < 1:
            raise ValueError("keys are ≥ 0 and values ≥ 1")
        old = self.gather(load, [root], changes) if root is not None else {}
        height = self.height_for(items[-1][0])
        if root is not None:
            height = max(height, get_height(old[root]))
        new: dict[bytes, bytes] = {}
        return self._build(old, new, root, height, items), new

    def diff(
        self, load: Load, a: bytes | None, b: bytes | None
    ) -> dict[int, tuple[int | None, int | None]]:
        """Return the keys whose values differ, with their values in `a` and in `b`. Costs the size
        of the difference."""
        differences: dict[int, tuple[int | None, int | None]] = {}
        level: list[tuple[int, bytes | None, bytes | None]] = [(0, a, b)] if a != b else []
        nodes = self._load_all(load, {node for node in (a, b) if node is not None})
        height = max((get_height(content) for content in nodes.values()), default=0)
        while level and height:
            bits = self.leaf_bits + (height - 1) * self.child_bits
            below: list[tuple[int, bytes | None, bytes | None]] = []
            for base, left, right in level:
                left_children = self._children(nodes, left, height)
                right_children = self._children(nodes, right, height)
                for index in range(max(len(left_children), len(right_children))):
                    left_child = left_children[index] if index < len(left_children) else None
                    right_child = right_children[index] if index < len(right_children) else None
                    if left_child != right_child:
                        below.append((base + (index << bits), left_child, right_child))
            level = below
            requested = {
                node for _, left, right in level for node in (left, right) if node is not None
            }
            # a lower tree stands for the first child at each greater height; it is loaded already
            nodes |= self._load_all(load, requested - nodes.keys())
            height -= 1
        for base, left, right in level:
            left_values = read_leaf(nodes[left]) if left is not None else ()
            right_values = read_leaf(nodes[right]) if right is not None else ()
            for index in range(max(len(left_values), len(right_values))):
                left_value = left_values[index] if index < len(left_values) else 0
                right_value = right_values[index] if index < len(right_values) else 0
                if left_value != right_value:
                    differences[base + index] = (left_value or None, right_value or None)
        return differences

    def _build(
        self,
        old: Mapping[bytes, bytes],
        new: dict[bytes, bytes],
        node: bytes | None,
        height: int,
        items: list[tuple[int, int]],
    ) -> bytes:
        """Set the items in the tree below `node` and give it the height. Return the new node's
        ID."""
        if height == 0:
            values = list(read_leaf(old[node])) if node is not None else []
            values.extend([0] * (items[-1][0] + 1 - len(values)))
            for key, value in items:
                values[key] = value
            return self._add(new, node, write_leaf(values))
        children = self._children(old, node, height)
        # a lower tree becomes the first child, with nodes of one child in between if need be
        split: dict[int, list[tuple[int, int]]] = {0: []} if children == [node] else {}
        bits = self.leaf_bits + (height - 1) * self.child_bits
        mask = (1 << bits) - 1
        for key, value in items:
            split.setdefault(key >> bits, []).append((key & mask, value))
        children.extend([None] * (max(split) + 1 - len(children)))
        for index, child_items in split.items():
            child = children[index]
            if child_items or (child is not None and get_height(old[child]) < height - 1):
                children[index] = self._build(old, new, child, height - 1, child_items)
        return self._add(
            new, node, bytes([height]) + b"".join(child or ABSENT for child in children)
        )

    @staticmethod
    def _add(new: dict[bytes, bytes], node: bytes | None, content: bytes) -> bytes:
        """Add a node to the new ones unless it equals the one that it replaces. Return its ID."""
        changed = compute_node_id(content)
        if changed != node:
            new[changed] = content
        return changed

    @staticmethod
    def _children(
        nodes: Mapping[bytes, bytes], node: bytes | None, height: int
    ) -> list[bytes | None]:
        """Return the children of a node at a height; a lower tree is its own first child."""
        if node is None:
            return []
        content = nodes[node]
        if get_height(content) < height:
            return [node]
        ids = (content[at : at + ID_SIZE] for at in range(1, len(content), ID_SIZE))
        return [child if child != ABSENT else None for child in ids]

    @staticmethod
    def _load_all(load: Load, ids: Iterable[bytes]) -> dict[bytes, bytes]:
        requested = list(ids)
        nodes = dict(load(requested)) if requested else {}
        for node in requested:
            if node not in nodes:
                raise MissingNode(node.hex())
        return nodes
