"""Checks the configured colours of pages and e-mails: computes their contrast, and lighter variants
for dark pages.

spec: WCAG 2.2, "relative luminance", "contrast ratio" and success criterion 1.4.3
"""

import re
from dataclasses import dataclass
from typing import Final

MIN_CONTRAST: Final = 4.5
"""The minimum contrast of text, by level AA."""
WHITE: Final = "#ffffff"
_HEX: Final = re.compile(r"#(?:[0-9a-fA-F]{3}|[0-9a-fA-F]{6})")
_STEPS: Final = 20
_TINT_SHARE: Final = 1 / 12
"""The share of the colour in the background of highlighted parts."""


@dataclass(frozen=True, slots=True)
class Backgrounds:
    """The backgrounds of a page: of the page itself and of input fields."""

    page: str
    field: str


LIGHT: Final = Backgrounds("#fbfaf6", WHITE)
DARK: Final = Backgrounds("#10201f", "#0b1817")
"""As in `homeserver/web/templates/pages.css`."""


def is_colour(text: str) -> bool:
    """Return whether the text is `#rgb` or `#rrggbb`."""
    return _HEX.fullmatch(text) is not None


def contrast(one: str, other: str) -> float:
    """Return the contrast ratio, from 1 (the same colour) to 21 (black and white)."""
    dark, light = sorted((_luminance(one), _luminance(other)))
    return (light + 0.05) / (dark + 0.05)


def tinted_background(colour: str, backgrounds: Backgrounds) -> str:
    """Return the background of parts that are highlighted with this colour."""
    return _mix(backgrounds.page, colour, _TINT_SHARE)


def find_lowest_contrast(colour: str, backgrounds: Backgrounds) -> tuple[float, str]:
    """Return the lowest contrast of a colour with its backgrounds, and that background: the page, a
    field, or its own tint."""
    candidates = (backgrounds.page, backgrounds.field, tinted_background(colour, backgrounds))
    return min((contrast(colour, each), each) for each in candidates)


def lighten_for_dark(colour: str) -> str:
    """Return the colour, made lighter if necessary to be legible on dark pages."""
    for step in range(_STEPS):
        lighter = _mix(colour, WHITE, step / _STEPS)
        if find_lowest_contrast(lighter, DARK)[0] >= MIN_CONTRAST:
            return lighter
    return WHITE


def _rgb(colour: str) -> tuple[int, int, int]:
    digits = colour[1:] if len(colour) == 7 else "".join(digit * 2 for digit in colour[1:])
    return int(digits[:2], 16), int(digits[2:4], 16), int(digits[4:], 16)


def _luminance(colour: str) -> float:
    red, green, blue = (
        part / 255 / 12.92 if part / 255 <= 0.04045 else ((part / 255 + 0.055) / 1.055) ** 2.4
        for part in _rgb(colour)
    )
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def _mix(one: str, other: str, share: float) -> str:
    mixed = (round(a + (b - a) * share) for a, b in zip(_rgb(one), _rgb(other), strict=True))
    return "#" + "".join(f"{part:02x}" for part in mixed)
