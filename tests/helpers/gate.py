"""A relay to a port of this machine that can be cut: open connections are then broken off, and new
ones refused.

gate = Gate(to=8448)
…  # gate.port is the port that others connect to
gate.cut()
gate.mend()
gate.end()
"""

import socket
from contextlib import suppress
from threading import Thread

CHUNK = 65536


class Gate:
    """Listens on a port of its own, and carries bytes to another, in threads: the servers are
    processes of their own."""

    def __init__(self, to: int) -> None:
        self._to = to
        self._open = True
        self._ends: set[socket.socket] = set()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        """Let nothing pass from now on."""
        self._open = False
        for end in tuple(self._ends):
            _break_off(end)

    def mend(self) -> None:
        """Let what is connected from now on pass again."""
        self._open = True

    def end(self) -> None:
        """Close all."""
        self.cut()
        _break_off(self._listener)
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                here, _ = self._listener.accept()
            except OSError:  # the listener was closed
                return
            Thread(target=self._carry, args=(here,), daemon=True).start()

    def _carry(self, here: socket.socket) -> None:
        with here, socket.socket() as there:
            with suppress(OSError):  # the server behind it does not run
                there.connect(("127.0.0.1", self._to))
                self._ends |= {here, there}
                if self._open:  # else it was cut just now
                    back = Thread(target=_pump, args=(there, here), daemon=True)
                    back.start()
                    _pump(here, there)
                    back.join()
            self._ends -= {here, there}


def _pump(source: socket.socket, target: socket.socket) -> None:
    """Carry what comes from one to the other; when that ends, end both."""
    with suppress(OSError):
        while data := source.recv(CHUNK):
            target.sendall(data)
    _break_off(source)
    _break_off(target)


def _break_off(end: socket.socket) -> None:
    with suppress(OSError):  # it is not connected any more
        end.shutdown(socket.SHUT_RDWR)
