"""A multipart response with two parts, in chunks of any size."""

from contextlib import suppress
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from federation.protocol.multipart import MAX_PARSED_LETTERS, BadMultipart, MultipartFile, name_in

TYPE = 'multipart/mixed; boundary="a b"'


def read(
    pieces: list[bytes], content_type: str = TYPE
) -> tuple[dict[str, str] | None, bytes, bool]:
    headers: list[dict[str, str]] = []
    came: list[bytes] = []
    reader = MultipartFile(content_type, lambda each: headers.append(dict(each)), came.append)
    for piece in pieces:
        reader.take(piece)
    return headers[0] if headers else None, b"".join(came), reader.is_whole


def answer(
    content: bytes,
    head: bytes = b"Content-Type: image/png\r\n",
    before: bytes = b"",
    after: bytes = b"",
) -> bytes:
    metadata = b"--a b \t\r\ncontent-type:application/json\r\n\r\n{}\r\n"
    return before + metadata + b"--a b\r\n" + head + b"\r\n" + content + b"\r\n--a b--" + after


def cut(data: bytes, places: list[int]) -> list[bytes]:
    ends = sorted({min(place, len(data)) for place in places} | {0, len(data)})
    return [data[start:end] for start, end in pairwise(ends)]


LIKE_A_BOUNDARY = st.lists(
    st.sampled_from([b"\r", b"\n", b"-", b"--", b"a", b" ", b"b", b"\r\n--a", b"x"])
).map(b"".join)


@given(
    st.one_of(st.binary(), LIKE_A_BOUNDARY).filter(lambda data: b"\r\n--a b" not in b"\r\n" + data),
    st.lists(st.integers(0, 400)),
    st.sampled_from([b"", b"preamble\r\n"]),
    st.sampled_from([b"", b"\r\n", b"\r\nepilogue"]),
)
def test_a_file_is_read_in_pieces_of_any_size(
    content: bytes, places: list[int], before: bytes, after: bytes
) -> None:
    found = read(cut(answer(content, before=before, after=after), places))
    assert found == ({"content-type": "image/png"}, content, True)


@given(st.binary(max_size=300), st.lists(st.integers(0, 400)))
def test_any_bytes_are_read_or_refused(data: bytes, places: list[int]) -> None:
    for whole in (data, answer(data, head=data)):
        with suppress(BadMultipart):
            read(cut(whole, places))


@given(st.lists(st.integers(0, 200)))
def test_an_empty_part_may_leave_out_its_empty_line(places: list[int]) -> None:
    data = answer(b"", head=b"Location: https://a/b\r\n")
    for each in (data, data.replace(b"\r\n\r\n\r\n--a b--", b"\r\n\r\n--a b--")):
        assert read(cut(each, places)) == ({"location": "https://a/b"}, b"", True)


def test_a_part_without_headers() -> None:
    assert read([answer(b"hello", head=b"")]) == ({}, b"hello", True)


def test_a_missing_end_is_an_error() -> None:
    assert not read([answer(b"hello")[:-1]])[2]


@pytest.mark.parametrize("line", [b"--a bc\r\n", b"--a b;\r\n", b"--a b" + b" " * 300 + b"\r\n"])
def test_a_prefix_of_the_boundary_belongs_to_the_file(line: bytes) -> None:
    with pytest.raises(BadMultipart):
        read([line + answer(b"")])


@pytest.mark.parametrize(
    ("disposition", "name"),
    [
        ("inline", None),
        ("", None),
        ("attachment; filename=a.png", "a.png"),
        ('attachment; filename="a b.png"', "a b.png"),
        ("attachment; filename*=utf-8''caf%C3%A9.png", "café.png"),
        ("attachment; filename=x; filename*=utf-8''y", "y"),
        ('inline; filename="caf\u00c3\u00a9"', "café"),
        ('inline; filename="caf\u00e9"', "café"),
        ("inline; filename*=utf-8''a%0D%0Ab", "ab"),
        ("inline; filename*=nonsense''a", "a"),
        ("inline; filename=", None),
    ],
)
def test_file_names_are_decoded(disposition: str, name: str | None) -> None:
    assert name_in(disposition) == name


def test_costly_headers_are_refused() -> None:
    """Time grows with the square of the quotes: minutes for these."""
    slow = '\\";' * 200_000
    assert name_in(f'attachment; filename=a; x="{slow}') is None
    with pytest.raises(BadMultipart, match="too long"):
        read([answer(b"milk")], f'{TYPE}; x="{slow}')
    said = "attachment; filename=a; x="
    assert name_in(said.ljust(MAX_PARSED_LETTERS, "y")) == "a"
    assert name_in(said.ljust(MAX_PARSED_LETTERS + 1, "y")) is None


@given(
    st.one_of(
        st.text(),
        st.text().map(lambda text: f"attachment; filename*={text}"),
        st.text().map("x; filename={}".format),
    )
)
def test_any_disposition_is_read(disposition: str) -> None:
    name = name_in(disposition)
    assert name is None or name.encode()
