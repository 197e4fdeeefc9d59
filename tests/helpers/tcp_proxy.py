"""A TCP proxy on this machine that can be cut: open connections break, and new ones are refused.

gate = Gate(to=8448)
…  # gate.port is the port for the other servers
gate.cut()
gate.mend()
gate.end()
"""

import socket
from contextlib import suppress
from threading import Thread

CHUNK = 65536


class TcpProxy:
    """Forwards bytes from its own port to another one, in threads, since the servers are separate
    processes."""

    def __init__(self, to: int) -> None:
        self._to = to
        self._open = True
        self._ends: set[socket.socket] = set()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        """Break all connections and refuse new ones."""
        self._open = False
        for end in tuple(self._ends):
            _break_off(end)

    def mend(self) -> None:
        """Accept new connections again."""
        self._open = True

    def end(self) -> None:
        """Close the listener and all connections."""
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
            with suppress(OSError):  # the server does not run
                there.connect(("127.0.0.1", self._to))
                self._ends |= {here, there}
                if self._open:  # otherwise `cut` was called meanwhile
                    back = Thread(target=_pump, args=(there, here), daemon=True)
                    back.start()
                    _pump(here, there)
                    back.join()
            self._ends -= {here, there}


def _pump(source: socket.socket, target: socket.socket) -> None:
    """Forward bytes in one direction. When one end closes, close both."""
    with suppress(OSError):
        while data := source.recv(CHUNK):
            target.sendall(data)
    _break_off(source)
    _break_off(target)


def _break_off(end: socket.socket) -> None:
    with suppress(OSError):  # already disconnected
        end.shutdown(socket.SHUT_RDWR)
