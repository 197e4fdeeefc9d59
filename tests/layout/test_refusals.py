"""Every error that a page can show is translated."""

from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest

from federation.protocol.errors import MatrixError
from homeserver.services.pages.languages import ENGLISH, Languages
from homeserver.web.error_texts import explain

ROOT = Path(__file__).parents[2]
LANGUAGES = Languages()


def below(kind: type[MatrixError]) -> Iterator[type[MatrixError]]:
    yield kind
    for each in kind.__subclasses__():
        yield from below(each)


def error_classes() -> list[type[MatrixError]]:
    """Return all error classes that pages may meet: those of the protocol, and those that services
    and pages import."""
    for folder in ("homeserver/services", "homeserver/web", "homeserver/http"):
        for path in sorted(ROOT.joinpath(folder).rglob("*.py")):
            import_module(".".join(path.relative_to(ROOT).with_suffix("").parts))
    return sorted({*below(MatrixError)}, key=lambda kind: kind.__qualname__)


def make_error(kind: type[MatrixError]) -> MatrixError:
    """Make an error of the class, whatever its parameters are."""
    error = kind.__new__(kind)
    MatrixError.__init__(error, "A text of the error itself", retry_after_ms=1, request_id="1f")
    error.__dict__.update(shortest=8, error="invalid_request")
    return error


@pytest.mark.parametrize("code", sorted({*LANGUAGES.codes} - {ENGLISH}))
def test_every_error_is_translated(code: str) -> None:
    language, english = LANGUAGES.get(code), LANGUAGES.get(ENGLISH)
    found = error_classes()
    assert len(found) > 60
    for kind in found:
        text = explain(make_error(kind), language)
        assert text
        assert "A text of the error itself" not in text, kind
        assert text != explain(make_error(kind), english), kind
