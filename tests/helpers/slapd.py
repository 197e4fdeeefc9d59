"""OpenLDAP's server from Debian, on loopback, with TLS, a group with memberOf, and users whom tests
add.

It runs in a temporary folder as the user of the tests. It is stopped by process ID.
"""

import shutil
import subprocess
import time
from pathlib import Path

from ldap3 import MODIFY_REPLACE, Connection, Server
from ldap3.core.exceptions import LDAPSocketOpenError
from ldap3.utils.dn import escape_rdn

from tests.helpers.certificates import Authority

BINARY = shutil.which("slapd") or shutil.which("slapd", path="/usr/sbin")
NOT_INSTALLED = (
    "NO DIRECTORY WAS ASKED: slapd is not installed here. scripts/identity_providers installs it"
)
BASE = "dc=example,dc=org"
PEOPLE = f"ou=people,{BASE}"
STAFF = f"cn=staff,ou=groups,{BASE}"
ADMIN = f"cn=admin,{BASE}"
READER = f"cn=matrix,{BASE}"
SECRET = "open sesame"

_CONFIG = """
include /etc/ldap/schema/core.schema
include /etc/ldap/schema/cosine.schema
include /etc/ldap/schema/inetorgperson.schema
modulepath /usr/lib/ldap
moduleload back_mdb
moduleload memberof
pidfile {folder}/pid
TLSCACertificateFile {authority}
TLSCertificateFile {certificate}
TLSCertificateKeyFile {key}
sizelimit size.soft=500 size.hard=unlimited size.pr=unlimited
database mdb
suffix "dc=example,dc=org"
rootdn "cn=admin,dc=example,dc=org"
rootpw "open sesame"
directory {folder}/data
dbnosync
maxsize 100000000
index entryUUID,uid eq
overlay memberof
access to attrs=userPassword by anonymous auth by * none
access to * by dn.exact="cn=matrix,dc=example,dc=org" read by self read by * none
"""


class Slapd:
    """A slapd process. `url` and `secure_url` are its addresses. Its certificate is for
    `localhost`, since ldap3 checks only names with some Python versions."""

    def __init__(self, folder: Path, port: int, secure_port: int) -> None:
        assert BINARY is not None
        folder.joinpath("data").mkdir()
        authority = Authority(folder)
        certificate, key = authority.issue("localhost")
        self.authority = authority.path
        config = folder / "slapd.conf"
        config.write_text(
            _CONFIG.format(
                folder=folder, authority=authority.path, certificate=certificate, key=key
            ),
            encoding="utf-8",
        )
        self.url = f"ldap://localhost:{port}"
        self.secure_url = f"ldaps://localhost:{secure_port}"
        self._command = [
            BINARY,
            "-f",
            str(config),
            "-h",
            f"{self.url} {self.secure_url}",
            "-d",
            "0",
        ]
        self._log = (folder / "log").open("wb")
        self._process: subprocess.Popen[bytes] | None = None
        self._admin = self.start()
        self._add(BASE, ["dcObject", "organization"], {"o": "Example"})
        for unit in ("people", "groups"):
            self._add(f"ou={unit},{BASE}", ["organizationalUnit"], {})
        self._add(READER, ["person"], {"sn": "Matrix", "userPassword": SECRET})
        self._add(STAFF, ["groupOfNames"], {"member": ADMIN})

    def start(self) -> Connection:
        """Start the server and wait until it answers. Return an administrator's connection."""
        self._process = subprocess.Popen(self._command, stdout=self._log, stderr=subprocess.STDOUT)
        deadline = time.monotonic() + 180
        while time.monotonic() < deadline:
            try:
                self._admin = Connection(Server(self.url), ADMIN, SECRET, auto_bind=True)
            except LDAPSocketOpenError:
                time.sleep(0.02)
            else:
                return self._admin
        raise AssertionError("slapd did not start")

    def stop(self) -> None:
        """Stop the server."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait(60)
            self._process = None

    def close(self) -> None:
        """Stop the server and close the connection."""
        self.stop()
        self._log.close()

    def add_person(
        self, uid: str, password: str = "wonderland", *, staff: bool = True, **attributes: str
    ) -> None:
        """Add a person. `staff`: whether the person may use the Matrix server."""
        given = {"cn": uid.title(), "sn": uid.title(), "userPassword": password, **attributes}
        self._add(self.dn(uid), ["inetOrgPerson"], {"uid": uid, **given})
        if staff:
            self._change(STAFF, "member", add=self.dn(uid))

    def set(self, uid: str, **attributes: str) -> None:
        """Change attributes of a person."""
        changes = {name: [(MODIFY_REPLACE, [value])] for name, value in attributes.items()}
        assert self._admin.modify(self.dn(uid), changes), self._admin.result

    def remove_person(self, uid: str) -> None:
        """Delete a person."""
        assert self._admin.delete(self.dn(uid)), self._admin.result
        self._admin.modify(STAFF, {"member": [("MODIFY_DELETE", [self.dn(uid)])]})

    def remove_from_staff(self, uid: str) -> None:
        """Remove a person from the staff group."""
        self._change(STAFF, "member", remove=self.dn(uid))

    def add_to_staff(self, uid: str) -> None:
        """Add a person to the staff group again."""
        self._change(STAFF, "member", add=self.dn(uid))

    def dn(self, uid: str) -> str:
        """Return the distinguished name of a person."""
        return f"uid={escape_rdn(uid)},{PEOPLE}"

    def _add(self, dn: str, classes: list[str], attributes: dict[str, str]) -> None:
        assert self._admin.add(dn, classes, attributes), self._admin.result

    def _change(self, dn: str, name: str, *, add: str = "", remove: str = "") -> None:
        how = ("MODIFY_ADD", [add]) if add else ("MODIFY_DELETE", [remove])
        assert self._admin.modify(dn, {name: [how]}), self._admin.result


def config_of(slapd: Slapd, further: str = "") -> str:
    """Return the Matrix server's configuration for this server: members of the staff group, with
    StartTLS."""
    return f"""
ldap_providers:
- uri: ["{slapd.url}"]
  tls_ca_file: {slapd.authority}
  base: {PEOPLE}
  bind_dn: {READER}
  bind_password: {SECRET}
  filter: "(memberOf={STAFF})"
  timeout: 60s
{further}"""
