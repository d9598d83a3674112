"""A TCP cable between a client and a server of this machine that a test cuts: at any moment, or between a request and its answer."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass
class Cable:
    """A forwarded port.

    Attributes:
        target: The server's port.
        loses: Says of what a client sent whether its answer shall be lost: it is passed on, then the connection is cut.
        port: Where clients connect to.
        cuts: How often it was cut.
    """

    target: int
    loses: Callable[[bytes], bool] = lambda _: False
    port: int = 0
    cuts: int = 0
    _pairs: set[tuple[socket.socket, socket.socket]] = field(default_factory=set)

    def cut(self) -> None:
        """Cut every connection there is."""
        for pair in list(self._pairs):
            self.cuts += 1
            for end in pair:
                with contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)

    def carry(self, client: socket.socket) -> None:
        """Connect one client with the server until either hangs up, or until it is cut."""
        with client, contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.target)) as server:
            pair = (client, server)
            self._pairs.add(pair)
            answers = threading.Thread(target=self._pump, args=(server, client))
            answers.start()
            self._ask(client, server)
            answers.join()
            self._pairs.discard(pair)

    def _ask(self, client: socket.socket, server: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := client.recv(1 << 16):
                if self.loses(data):
                    self.cuts += 1
                    client.shutdown(socket.SHUT_RDWR)  # it is gone before the server can answer
                server.sendall(data)
        with contextlib.suppress(OSError):
            server.shutdown(socket.SHUT_WR)

    def _pump(self, server: socket.socket, client: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := server.recv(1 << 16):
                client.sendall(data)
        for end in (client, server):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


@contextmanager
def cabled(target: int, loses: Callable[[bytes], bool] = lambda _: False) -> Iterator[Cable]:
    """A cable to a port of this machine, until the block ends."""
    cable, threads = Cable(target, loses), list[threading.Thread]()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        cable.port = listener.getsockname()[1]

        def accept() -> None:
            with contextlib.suppress(OSError):
                while True:
                    client, _ = listener.accept()
                    threads.append(threading.Thread(target=cable.carry, args=(client,)))
                    threads[-1].start()

        thread = threading.Thread(target=accept)
        thread.start()
        try:
            yield cable
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()
            cable.cut()
            for each in threads:
                each.join()
