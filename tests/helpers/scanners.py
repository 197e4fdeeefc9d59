"""Scanners from Debian: clamd, with a few signatures of the tests, since real ones cannot be
downloaded in a test, and c-icap, which passes its files to clamd.

They run in a temporary folder, as an unprivileged user if the tests run as root. They are stopped
by process ID.
"""

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from tests.helpers.ports import free_port

CLAMD: Final = shutil.which("clamd") or shutil.which("clamd", path="/usr/sbin")
C_ICAP: Final = shutil.which("c-icap")
NOT_INSTALLED: Final = (
    "no scanner is installed here: scripts/test installs clamav-daemon and libc-icap-mod-virus-scan"
)
SECONDS_TO_START: Final = 180.0
EICAR: Final = b"".join(
    (b"X5O!P%@AP[4\\PZX54(P^)7CC)7}$", b"EICAR-STANDARD-ANTIVIRUS-TEST-FILE!", b"$H+H*")
)
"""The standard test file that every scanner reports as a virus. It is split here, so that scanners
don't report this source file."""
EICAR_FOUND: Final = "clamd: Eicar-Test-Signature.UNOFFICIAL"
STREAM_MAX: Final = 4 << 20
"""The maximum size in bytes of a file that clamd accepts."""

_CLAMD_CONFIG: Final = """
DatabaseDirectory {folder}/signatures
LocalSocket {folder}/clamd
TCPSocket {port}
TCPAddr 127.0.0.1
LogFile {folder}/clamd.log
Foreground yes
MaxThreads 4
StreamMaxLength {stream_max}
{user}
"""
_ICAP_CONFIG: Final = """
PidFile {folder}/icap.pid
CommandsSocket {folder}/icap.control
StartServers 1
MaxServers 1
ThreadsPerChild 4
MinSpareThreads 1
MaxSpareThreads 4
Port 127.0.0.1:{port}
TmpDir {folder}
ModulesDir {modules}
ServicesDir {modules}
LoadMagicFile /etc/c-icap/c-icap.magic
TemplateDir /usr/share/c_icap/templates/
TemplateDefaultLanguage en
ServerLog {folder}/icap.log
AccessLog {folder}/icap.access
Service echo srv_echo.so
Service antivirus_module virus_scan.so
ServiceAlias avscan virus_scan?allow204=on&sizelimit=off&mode=simple
virus_scan.ScanFileTypes TEXT DATA EXECUTABLE ARCHIVE GIF JPEG JPEG2000 BMP PNG TIFF SWF MSOFFICE PDF BINARY
virus_scan.SendPercentData 5
virus_scan.StartSendPercentDataAfter 2M
virus_scan.MaxObjectSize 20M
virus_scan.DefaultEngine clamd
Module common clamd_mod.so
clamd_mod.ClamdSocket {folder}/clamd
{user}
"""  # noqa: E501  (a line of this format cannot be broken)


class _Program:
    """A scanner process."""

    def __init__(self, command: list[str], log: Path, is_ready: Callable[[], bool]) -> None:
        self._command = command
        self._log = log
        self._is_ready = is_ready
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        until = time.monotonic() + SECONDS_TO_START
        while time.monotonic() < until and self._process.poll() is None:
            if self._is_ready():
                return
            time.sleep(0.02)
        raise AssertionError(f"{self._command[0]} did not start: {self._log.read_text()}")

    def stop(self) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait(60)
            self._process = None


class RunningScanners:
    """Both scanners. `unix` and `tcp` are clamd's addresses as the configuration has them, `icap`
    is the URL of c-icap's service."""

    def __init__(self, folder: Path) -> None:
        assert CLAMD is not None, NOT_INSTALLED
        assert C_ICAP is not None, NOT_INSTALLED
        self._folder = folder
        self._signatures = folder / "signatures"
        self._signatures.mkdir()
        self.learn("Eicar-Test-Signature", EICAR)
        port, icap_port = free_port(), free_port()
        self.unix = f"unix:{folder}/clamd"
        self.tcp = f"tcp:127.0.0.1:{port}"
        self.icap = f"icap://127.0.0.1:{icap_port}/avscan"
        self.icap_echo = f"icap://127.0.0.1:{icap_port}/echo"
        user = pwd.getpwnam("nobody") if os.getuid() == 0 else None
        clamd, icap = folder / "clamd.conf", folder / "icap.conf"
        clamd.write_text(
            _CLAMD_CONFIG.format(
                folder=folder,
                port=port,
                stream_max=STREAM_MAX,
                user="" if user is None else "User nobody",
            ),
            encoding="utf-8",
        )
        icap.write_text(
            _ICAP_CONFIG.format(
                folder=folder,
                port=icap_port,
                modules=next(Path("/usr/lib").glob("*/c_icap")),
                user="" if user is None else "User nobody\nGroup nogroup",
            ),
            encoding="utf-8",
        )
        if user is not None:
            for each in (folder, self._signatures, *folder.iterdir()):
                os.chown(each, user.pw_uid, user.pw_gid)
        self._clamd = _Program(
            [CLAMD, "--config-file", str(clamd)], folder / "clamd.output", self._clamd_answers
        )
        self._icap = _Program(
            [C_ICAP, "-N", "-f", str(icap)],
            folder / "icap.output",
            lambda: _is_open("127.0.0.1", icap_port),
        )

    def learn(self, name: str, content: bytes) -> None:
        """Add a signature for these bytes. clamd loads it at its next start."""
        with (self._signatures / "own.ndb").open("a", encoding="ascii") as file:
            file.write(f"{name}:0:*:{content.hex()}\n")

    def start_icap(self) -> None:
        """Start c-icap, which needs a running clamd."""
        self._icap.start()

    def start_clamd(self) -> None:
        """Start clamd."""
        self._clamd.start()

    def stop_clamd(self) -> None:
        """Stop clamd."""
        self._clamd.stop()

    def stop(self) -> None:
        """Stop both."""
        self._icap.stop()
        self._clamd.stop()

    def _clamd_answers(self) -> bool:
        with socket.socket(socket.AF_UNIX) as connection:
            try:
                connection.connect(f"{self._folder}/clamd")
                connection.sendall(b"zPING\0")
                return connection.recv(100) == b"PONG\0"
            except OSError:
                return False


@contextmanager
def running_scanners() -> Iterator[RunningScanners]:
    """Start clamd, and stop both scanners at the end. The folder is not pytest's, which the
    unprivileged user cannot enter and whose path is too long for a socket."""
    folder = Path(tempfile.mkdtemp(prefix="mahalla-scan-"))
    try:
        scanners = RunningScanners(folder)
        try:
            scanners.start_clamd()
            yield scanners
        finally:
            scanners.stop()
    finally:
        shutil.rmtree(folder)


def _is_open(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), 1).close()
    except OSError:
        return False
    return True
