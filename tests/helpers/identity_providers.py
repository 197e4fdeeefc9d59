"""Third-party identity providers as processes on loopback (installed by
scripts/identity_providers)."""

import json
import shutil
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509.oid import NameOID

from tests.helpers.certificates import END, START

ROOT = Path(__file__).parents[2]
NPM = ROOT / ".cache" / "identity_providers"
CAS = ROOT / ".cache" / "cas" / "bin" / "python"
NODE = ROOT / ".cache" / "js" / "node_modules" / ".bin" / "node"
NO_NPM = (
    "NOBODY SIGNED IN WITH OPENID OR SAML: scripts/identity_providers and"
    " scripts/node_packages install what is missing"
)
NO_CAS = (
    "NOBODY SIGNED IN WITH CAS: the server is not installed here. scripts/identity_providers"
    " installs it"
)
HAS_NPM = (NPM / "installed").exists() and NODE.exists()
HAS_SAML = HAS_NPM and shutil.which("xmlsec1") is not None
HAS_CAS = CAS.exists()
BASE = "https://matrix.example.org/"
"""The public base URL of the server under test."""

_CAS_SETTINGS = """
SECRET_KEY = "a key of the tests"
ALLOWED_HOSTS = ["127.0.0.1", "localhost"]
DEBUG = False
ROOT_URLCONF = "urls"
INSTALLED_APPS = ["django.contrib.auth", "django.contrib.contenttypes", "django.contrib.sessions",
                  "django.contrib.messages", "django.contrib.staticfiles", "cas_server"]
MIDDLEWARE = ["django.contrib.sessions.middleware.SessionMiddleware",
              "django.middleware.csrf.CsrfViewMiddleware",
              "django.contrib.auth.middleware.AuthenticationMiddleware",
              "django.contrib.messages.middleware.MessageMiddleware"]
TEMPLATES = [{"BACKEND": "django.template.backends.django.DjangoTemplates", "APP_DIRS": True,
              "OPTIONS": {
    "context_processors": ["django.template.context_processors.request",
                           "django.contrib.auth.context_processors.auth",
                           "django.contrib.messages.context_processors.messages"]}}]
DATABASES = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": "cas.db"}}
MIGRATION_MODULES = {"auth": None, "contenttypes": None, "sessions": None, "cas_server": None}
DEFAULT_AUTO_FIELD = "django.db.models.AutoField"
STATIC_URL = "/static/"
USE_TZ = True
CAS_AUTH_CLASS = "cas_server.auth.TestAuthUser"
CAS_TEST_USER = "alice"
CAS_TEST_PASSWORD = "wonderland"
CAS_TEST_ATTRIBUTES = {"displayName": "Alice <Liddell>", "affiliation": ["staff", "library"]}
CAS_NEW_VERSION_HTML_WARNING = False
"""
_CAS_URLS = """
from django.urls import include, path
urlpatterns = [path("cas/", include("cas_server.urls", namespace="cas_server"))]
"""
_CAS_MAIN = """
import sys, django
django.setup()
from django.core.management import call_command
call_command("migrate", run_syncdb=True, verbosity=0)
from cas_server.models import ReplaceAttributName, ServicePattern
pattern = ServicePattern.objects.create(pos=1, name="all", pattern="^" + sys.argv[2], user_field="")
for name in ("displayName", "affiliation"):
    ReplaceAttributName.objects.create(name=name, replace="", service_pattern=pattern)
call_command("runserver", "127.0.0.1:" + sys.argv[1], use_reloader=False, skip_checks=True)
"""


class ProviderProcess:
    """A process that serves on 127.0.0.1. `url` is its root URL, without a trailing slash."""

    def __init__(
        self,
        command: Sequence[str],
        folder: Path,
        port: int,
        probe: str,
        settings: dict[str, str] | None = None,
    ) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.folder = folder
        self._log_file = folder / "log"
        self._log = self._log_file.open("wb")
        self._process = subprocess.Popen(
            command, cwd=folder, env=settings, stdout=self._log, stderr=subprocess.STDOUT
        )
        deadline = time.monotonic() + 180
        while time.monotonic() < deadline:
            assert self._process.poll() is None, self.log()
            try:
                with urlopen(self.url + probe, timeout=10):
                    return
            except (URLError, OSError):
                time.sleep(0.05)
        raise AssertionError(f"it did not start: {self.log()}")

    def log(self) -> str:
        """Return the output of the process."""
        return self._log_file.read_text(encoding="utf-8")

    def end(self) -> None:
        """Terminate the process."""
        self._process.terminate()
        self._process.wait(60)
        self._log.close()


def start_npm(
    folder: Path, port: int, logout_url: str, *, base: str = BASE, host: str = "127.0.0.1"
) -> ProviderProcess:
    """Start the OpenID provider at /oidc and the SAML provider at /saml on `host`, for the Matrix
    server at `base`."""
    certificate, key = rsa_certificate(folder)
    for name in ("providers.mjs", "package.json"):
        shutil.copy(ROOT / "tests" / "identity_providers" / "js" / name, folder)
    (folder / "node_modules").symlink_to(NPM / "node_modules")
    options = {
        "host": host,
        "port": port,
        "base": base,
        "logoutUrl": logout_url,
        "cert": str(certificate),
        "key": str(key),
    }
    command = [str(NODE), "--preserve-symlinks-main", "providers.mjs", json.dumps(options)]
    return ProviderProcess(command, folder, port, "/oidc/.well-known/openid-configuration")


def start_cas(folder: Path, port: int, *, base: str = BASE) -> ProviderProcess:
    """Start the CAS server at /cas for the Matrix server at `base`."""
    (folder / "settings.py").write_text(_CAS_SETTINGS, encoding="utf-8")
    (folder / "urls.py").write_text(_CAS_URLS, encoding="utf-8")
    settings = {"DJANGO_SETTINGS_MODULE": "settings", "PYTHONPATH": str(folder)}
    return ProviderProcess(
        [str(CAS), "-c", _CAS_MAIN, str(port), base], folder, port, "/cas/login", settings
    )


def rsa_certificate(folder: Path) -> tuple[Path, Path]:
    """Make a self-signed RSA certificate and its key. SAML cannot use the ECDSA certificates that
    tests use for TLS."""
    key = rsa.generate_private_key(65537, 2048)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "an identity provider of the tests")])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(START)
        .not_valid_after(END)
        .sign(key, hashes.SHA256())
    )
    paths = folder / "idp.pem", folder / "idp.key"
    paths[0].write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    paths[1].write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return paths


def rsa_key(folder: Path) -> rsa.RSAPrivateKey:
    """Load the key of a certificate that `rsa_certificate` made."""
    key = serialization.load_pem_private_key((folder / "idp.key").read_bytes(), None)
    assert isinstance(key, rsa.RSAPrivateKey)
    return key
