"""Third-party servers, each started once per test file that needs it."""

import time
from collections.abc import Iterator
from pathlib import Path
from urllib.request import urlopen

import pytest

from storage.engine.database import Database
from tests.helpers.identity_providers import (
    BASE,
    HAS_NPM,
    HAS_SAML,
    NO_NPM,
    ProviderProcess,
    start_npm,
)
from tests.helpers.npm_sign_ins import CLIENT, LogoutListener
from tests.helpers.ports import free_port
from tests.helpers.server import TestServer
from tests.helpers.slapd import BINARY, NOT_INSTALLED, Slapd
from tests.helpers.sso_browser import BlockingWeb


@pytest.fixture(scope="module")
def slapd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slapd]:
    if BINARY is None:
        pytest.skip(NOT_INSTALLED)
    server = Slapd(tmp_path_factory.mktemp("slapd"), free_port(), free_port())
    yield server
    server.close()


@pytest.fixture(scope="module")
def listener() -> Iterator[LogoutListener]:
    made = LogoutListener()
    yield made
    made.close()


@pytest.fixture(scope="module")
def providers(
    tmp_path_factory: pytest.TempPathFactory, listener: LogoutListener
) -> Iterator[ProviderProcess]:
    if not HAS_NPM:
        pytest.skip(NO_NPM)
    folder = tmp_path_factory.mktemp("providers")
    server = start_npm(folder, free_port(), listener.url)
    yield server
    server.end()


@pytest.fixture
def server(tmp_path: Path, sqlite_database: Database, providers: ProviderProcess) -> TestServer:
    saml = ""
    if HAS_SAML:
        with urlopen(f"{providers.url}/saml/metadata", timeout=60) as answer:
            (tmp_path / "idp.xml").write_bytes(answer.read())
        saml = """
saml2_config:
  idp_name: School
  sp_config: {metadata: {local: [idp.xml]}}
  attribute_requirements: [{attribute: eduPersonAffiliation, value: staff}]
"""
    config = f"""
public_baseurl: {BASE}
sso: {{client_whitelist: ["{CLIENT}"]}}
oidc_providers:
- idp_id: town
  idp_name: Town hall
  issuer: {providers.url}/oidc
  skip_verification: true
  client_id: matrix
  client_secret: open sesame
  scopes: [openid, profile, email]
  backchannel_logout_enabled: true
  attribute_requirements: [{{attribute: groups, one_of: [staff]}}]
  user_mapping_provider:
    config:
      localpart_template: "{{{{ user.preferred_username }}}}"
      display_name_template: "{{{{ user.name }}}}"
      email_template: "{{{{ user.email }}}}"
{saml}"""
    return TestServer(tmp_path, sqlite_database, config, web=BlockingWeb(), now=time.time())
