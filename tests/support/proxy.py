"""A TCP line between a client and a server that can be cut."""

from __future__ import annotations

import contextlib
import socket
import threading
from typing import Self


class Line:
    """Forwards connections on ``port`` to ``target`` on 127.0.0.1; a context manager.

    ``cut_after`` lists, per connection in the order of their arrival, after how many bytes from the server it is cut;
    connections beyond the list are never cut. ``crossed`` counts the bytes from the server.
    """

    def __init__(self, target: int, *cut_after: int | None) -> None:
        self.target = target
        self.cuts = list(cut_after)
        self.crossed = 0
        self.connections = 0
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self.listener.getsockname()[1]
        self.open: set[socket.socket] = set()

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.listener.close()
        for connection in list(self.open):
            self._close(connection)

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self.listener.accept()
            except OSError:
                return
            limit = self.cuts[self.connections] if self.connections < len(self.cuts) else None
            self.connections += 1
            far = socket.create_connection(("127.0.0.1", self.target))
            self.open |= {near, far}
            threading.Thread(target=self._forward, args=(near, far, None, False), daemon=True).start()
            threading.Thread(target=self._forward, args=(far, near, limit, True), daemon=True).start()

    def _forward(self, source: socket.socket, target: socket.socket, limit: int | None, count: bool) -> None:
        passed = 0
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                if limit is not None and passed + len(data) > limit:
                    break
                target.sendall(data)
                passed += len(data)
                self.crossed += len(data) if count else 0
        self._close(source)
        self._close(target)

    def _close(self, connection: socket.socket) -> None:
        self.open.discard(connection)
        with contextlib.suppress(OSError):
            connection.shutdown(socket.SHUT_RDWR)
        connection.close()
