"""Globs: `*` matches any characters, `?` matches one character. Case is ignored.

spec: appendices#glob-style-matching
"""

import re


class Globs:
    """A list of globs: those without wildcards in a set, the others as their parts between the
    `*`."""

    __slots__ = ("_exact", "_patterns")

    def __init__(self, globs: object) -> None:
        """`globs`: any value. A value that is no list, and an entry that is no string, matches
        nothing."""
        # Case is taken away here and by who asks, so that it costs nothing at each question.
        texts = (
            {glob.lower() for glob in globs if isinstance(glob, str)}
            if isinstance(globs, list)
            else set()
        )
        wild = {text for text in texts if "*" in text or "?" in text}
        self._exact = texts - wild
        self._patterns = [tuple(_STARS.sub("*", text).split("*")) for text in wild]

    def match(self, text: str) -> bool:
        """Whether one of them matches the text, which is in lower case."""
        return text in self._exact or any(_matches_parts(parts, text) for parts in self._patterns)


_STARS = re.compile(r"\*+")


class Glob:
    """One glob. It is matched against a complete text, or against the words in it. Texts are in
    lower case.

        The glob is split at the `*`. Each part has a fixed length, and is searched from left to
        right without backtracking. So a hostile glob takes at most the product of the two lengths.
        That may still be much, so callers first look for `literal` in the text, which is fast. Most
        globs match nothing.
    """

    __slots__ = ("_at_words", "_last_length", "_parts", "length", "literal")

    def __init__(self, glob: str) -> None:
        texts = _STARS.sub("*", glob.lower()).split("*")
        self.length = sum(map(len, texts))
        """Characters besides the `*`. A match takes at most this many steps for each character of
        the text."""
        self.literal = max((run for text in texts for run in text.split("?")), key=len)
        """A string that every matching text contains."""
        parts = [
            "".join("." if letter == "?" else re.escape(letter) for letter in text)
            for text in texts
        ]
        self._last_length = len(texts[-1])
        self._parts = [re.compile(part, re.DOTALL) for part in parts]
        parts[0] = f"(?<!{_IN_WORDS}){parts[0]}"
        parts[-1] = f"{parts[-1]}(?!{_IN_WORDS})"
        self._at_words = [re.compile(part, re.DOTALL) for part in parts]

    def match(self, text: str) -> bool:
        """Whether it matches the whole text."""
        if len(self._parts) == 1:
            return self._parts[0].fullmatch(text) is not None
        first, *middle, last = self._parts
        end = len(text) - self._last_length
        found = first.match(text, 0, max(end, 0))
        for part in middle:
            if found is None:
                return False
            found = part.search(text, found.end(), end)
        return found is not None and found.end() <= end and last.fullmatch(text, end) is not None

    def match_words(self, text: str) -> bool:
        """Whether it matches a part of the text that begins and ends at the bound of a word.

        spec: client-server-api#conditions-1
        """
        position = 0
        for part in self._at_words:
            found = part.search(text, position)
            if found is None:
                return False
            position = found.end()
        return True


_IN_WORDS = "[A-Za-z0-9_]"


def _matches_parts(parts: tuple[str, ...], text: str) -> bool:
    """Whether a glob matches. Its parts are found from left to right, each as early as can be: no
    backtracking.

    A regular expression with many `.*` takes time without bound on a hostile list; this takes at
    most the product of the two lengths.
    """
    if len(parts) == 1:
        return len(text) == len(parts[0]) and _stands_at(parts[0], text, 0)
    first, *middle, last = parts
    end = len(text) - len(last)
    if end < len(first) or not _stands_at(first, text, 0) or not _stands_at(last, text, end):
        return False
    position = len(first)
    for part in middle:
        while position + len(part) <= end and not _stands_at(part, text, position):
            position += 1
        position += len(part)
        if position > end:
            return False
    return True


def _stands_at(part: str, text: str, position: int) -> bool:
    """Whether the part (with `?` for any character) stands at that place of the text."""
    if "?" not in part:
        return text.startswith(part, position)
    return all(
        wanted == "?" or wanted == found
        for wanted, found in zip(part, text[position : position + len(part)], strict=True)
    )
