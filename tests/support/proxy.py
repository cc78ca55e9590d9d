"""A TCP line between a client and a server that breaks as told, also while it runs."""

from __future__ import annotations

import contextlib
import select
import socket
import threading
import time
from collections import deque
from functools import partial
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from collections.abc import Callable

PIECE = 65536
TICK_SECONDS = 0.05
"""How soon a switch is noticed by a connection on which nothing moves."""
DROP_SECONDS = 0.5


class Line:
    """Forwards connections on ``port`` to ``target`` on 127.0.0.1; a context manager.

    ``cut_after`` lists, per connection in the order of their arrival, after how many bytes from the server it is cut;
    connections beyond the list are not. ``crossed`` and ``sent`` count the bytes that were forwarded from the server
    and to it. All of the following may be changed at any time, from any thread:

    - ``cut()`` breaks the open connections at once, ``drop()`` after a moment's silence;
    - ``corrupt()`` spoils the next byte from the server;
    - ``stall()`` and ``resume()``: connections stay open, or are accepted, and nothing is forwarded;
    - ``rate``: bytes per second of each connection and direction, None for no limit;
    - ``delay``: seconds that every byte takes, without making the line narrower;
    - ``heal()`` ends all of it;
    - ``at(bytes, action)`` calls an action when exactly so many bytes from the server have crossed, all connections
      together: ``line.at(1_000_000, line.cut)``.
    """

    def __init__(self, target: int, *cut_after: int | None, rate: float | None = None, delay: float = 0.0) -> None:
        self.target = target
        self.cuts = list(cut_after)
        self.rate = rate
        self.delay = delay
        self.crossed = 0
        self.sent = 0
        self.connections = 0
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self.listener.getsockname()[1]
        self.open: set[socket.socket] = set()
        self._due: list[tuple[int, Callable[[], object]]] = []
        self._stalled = False
        self._spoil = False
        self._lock = threading.RLock()

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.listener.close()
        self.cut()

    def cut(self) -> None:
        """Break every connection that is open now."""
        with self._lock:
            for connection in list(self.open):
                self._close(connection)

    def drop(self) -> None:
        """Go down as lines do: nothing comes through any more, and a moment later the open connections end.

        What had come through is with the client by then. ``cut()`` takes away also what waits in its buffers.
        """

        def end() -> None:
            self.cut()
            self.resume()

        self.stall()
        threading.Timer(DROP_SECONDS, end).start()

    def stall(self) -> None:
        """Forward nothing more, on open and on new connections."""
        self._stalled = True

    def resume(self) -> None:
        """Forward again, beginning with what was held back."""
        self._stalled = False

    def corrupt(self) -> None:
        """Spoil the next byte that comes from the server."""
        self._spoil = True

    def at(self, crossed: int, action: Callable[[], object]) -> None:
        """Call ``action`` when ``crossed`` bytes from the server have been forwarded in all."""
        with self._lock:
            self._due = sorted([*self._due, (crossed, action)], key=lambda due: due[0])

    def heal(self) -> None:
        """Be a good line again, and forget what was to happen ``at`` some byte."""
        with self._lock:
            self._due = []
            self._spoil = False
        self.rate, self.delay = None, 0.0
        self.resume()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self.listener.accept()
            except OSError:
                return
            try:
                far = socket.create_connection(("127.0.0.1", self.target))
            except OSError:  # the server is away
                near.close()
                continue
            limit = self.cuts[self.connections] if self.connections < len(self.cuts) else None
            with self._lock:
                self.connections += 1
                self.open |= {near, far}
            threading.Thread(target=self._forward, args=(near, far, self._to_server), daemon=True).start()
            to_client = partial(self._to_client, _Passed(limit))
            threading.Thread(target=self._forward, args=(far, near, to_client), daemon=True).start()

    def _forward(
        self, source: socket.socket, target: socket.socket, pass_on: Callable[[socket.socket, bytes], None]
    ) -> None:
        """Forward one direction of a connection until either end closes or it is cut."""
        under_way: deque[tuple[float, bytes]] = deque()
        ended = False
        with contextlib.suppress(OSError, ValueError):  # ValueError: select on a socket that was cut
            while not ended or under_way:
                wait = min(TICK_SECONDS, max(0.0, under_way[0][0] - time.monotonic()) if under_way else TICK_SECONDS)
                if ended or self._stalled:
                    time.sleep(wait)
                elif select.select([source], [], [], wait)[0]:
                    data = source.recv(PIECE if self.rate is None else max(1, min(PIECE, int(self.rate / 50))))
                    ended = not data
                    under_way.append((time.monotonic() + self.delay, data))
                    if self.rate:
                        time.sleep(len(data) / self.rate)
                while under_way and not self._stalled and under_way[0][0] <= time.monotonic():
                    pass_on(target, under_way.popleft()[1])
        with self._lock:
            self._close(source)
            self._close(target)

    def _to_server(self, target: socket.socket, data: bytes) -> None:
        target.sendall(data)
        self.sent += len(data)

    def _to_client(self, passed: _Passed, target: socket.socket, data: bytes) -> None:
        while data:
            while self._stalled and target in self.open:
                time.sleep(TICK_SECONDS)
            with self._lock:
                room = min([len(data), *(at - self.crossed for at, _ in self._due[:1]), *passed.room()])
                piece, data = data[:room], data[room:]
                if piece and self._spoil:
                    self._spoil = False
                    piece = bytes([piece[0] ^ 255]) + piece[1:]
                self.crossed += len(piece)
                passed.bytes += len(piece)
            target.sendall(piece)
            with self._lock:
                while self._due and self._due[0][0] <= self.crossed:
                    self._due.pop(0)[1]()
            if passed.limit is not None and passed.bytes >= passed.limit:
                raise ConnectionAbortedError

    def _close(self, connection: socket.socket) -> None:
        self.open.discard(connection)
        with contextlib.suppress(OSError):
            connection.shutdown(socket.SHUT_RDWR)
        connection.close()


class _Passed:
    """How much of one connection has come from the server, and after how much it is cut."""

    def __init__(self, limit: int | None) -> None:
        self.limit = limit
        self.bytes = 0

    def room(self) -> list[int]:
        return [] if self.limit is None else [self.limit - self.bytes]
