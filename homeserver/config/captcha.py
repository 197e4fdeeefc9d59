"""Options about captchas at registration."""

from dataclasses import dataclass
from urllib.parse import urlsplit

from homeserver.config.option import Secret, option


def _is_header_safe_url(text: str) -> bool:
    """Return whether the text is an https address that is valid in a header, where these characters
    are separators."""
    try:
        parts = urlsplit(text)
    except ValueError:
        return False
    unsafe = not text.isascii() or not text.isprintable() or any(sign in text for sign in " ;,'\"#")
    return (
        not unsafe and parts.scheme == "https" and bool(parts.hostname) and parts.username is None
    )


def _check_address(url: str) -> str | None:
    return None if _is_header_safe_url(url) else "must be an https:// address"


def _check_sources(sources: tuple[str, ...]) -> str | None:
    invalid = [source for source in sources if not _is_header_safe_url(source)]
    return f"must be https:// addresses, not {', '.join(map(repr, invalid))}" if invalid else None


@dataclass(frozen=True, slots=True, kw_only=True)
class CaptchaOptions:
    """Captcha at registration (reCAPTCHA, hCaptcha, Turnstile)."""

    enable_registration_captcha: bool = option(
        False,
        "Requires a captcha before registration. The defaults below are those of reCAPTCHA "
        "(version 2, checkbox). Browsers of people who register load the script of the captcha "
        "service, which learns their IP addresses.",
    )
    recaptcha_public_key: Secret | None = option(
        None, "The public key (site key), which apps and the registration page use."
    )
    recaptcha_private_key: Secret | None = option(
        None, "The secret key. Not needed with a plug-in that has `check_captcha`."
    )
    recaptcha_siteverify_api: str = option(
        "https://www.recaptcha.net/recaptcha/api/siteverify",
        "The URL that verifies solutions. hCaptcha: `https://api.hcaptcha.com/siteverify`; "
        "Turnstile: `https://challenges.cloudflare.com/turnstile/v0/siteverify`.",
        check=_check_address,
    )
    recaptcha_script: str = option(
        "https://www.recaptcha.net/recaptcha/api.js",
        "The script that shows the captcha on this server's pages. hCaptcha: "
        "`https://js.hcaptcha.com/1/api.js`; Turnstile: "
        "`https://challenges.cloudflare.com/turnstile/v0/api.js?compat=recaptcha`. Older apps "
        "that show a captcha themselves, such as Element Web, always load the script of "
        "reCAPTCHA.",
        check=_check_address,
    )
    recaptcha_sources: tuple[str, ...] = option(
        ("https://www.recaptcha.net/recaptcha/", "https://www.gstatic.com/recaptcha/"),
        "The sources from which that script can load more scripts, frames and styles, in the "
        "format of a `Content-Security-Policy`. hCaptcha: `[https://hcaptcha.com, "
        "https://*.hcaptcha.com]`; Turnstile: `[https://challenges.cloudflare.com]`.",
        check=_check_sources,
    )
