"""Services that messages and heartbeats are sent to: they keep what they get, refuse it, or never answer."""

from __future__ import annotations

import contextlib
import http.server
import json
import threading
from typing import TYPE_CHECKING, Any

from aiosmtpd.controller import Controller

from support.server import free_port

if TYPE_CHECKING:
    from collections.abc import Iterator


class Sink:
    """An HTTP server on loopback. ``status`` is what it answers; ``slow`` makes an answer never end."""

    def __init__(self) -> None:
        self.status = 200
        self.slow = False
        self.got: list[tuple[str, bytes]] = []
        self.over = threading.Event()
        sink = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                sink.got.append((self.path, body))
                if sink.slow:
                    self.trickle()
                    return
                self.send_response(sink.status)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def trickle(self) -> None:
                with contextlib.suppress(OSError):
                    self.wfile.write(b"HTTP/1.1 200 OK\r\n")
                    while not sink.over.wait(0.2):
                        self.wfile.write(b"X: y\r\n")
                self.close_connection = True

            def log_message(self, *_arguments: object) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.port = self.server.server_address[1]

    @property
    def paths(self) -> list[str]:
        """Where requests went, in order."""
        return [path for path, _ in self.got]

    @property
    def messages(self) -> list[dict[str, Any]]:
        """The messages that apprise's json:// sent, in order."""
        return [json.loads(body) for _, body in self.got]

    @property
    def subjects(self) -> list[str]:
        """What these are about."""
        return [message["title"] for message in self.messages]


@contextlib.contextmanager
def sink() -> Iterator[Sink]:
    """Run a sink for as long as the block lasts."""
    made = Sink()
    thread = threading.Thread(target=made.server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield made
    finally:
        made.over.set()
        made.server.shutdown()
        thread.join()
        made.server.server_close()


class Mails:
    """Keeps mails as they came."""

    def __init__(self) -> None:
        self.got: list[bytes] = []

    async def handle_DATA(self, _server: object, _session: object, envelope: Any) -> str:  # noqa: N802
        self.got.append(envelope.content)
        return "250 kept"


@contextlib.contextmanager
def mailbox() -> Iterator[tuple[Mails, int]]:
    """Run an SMTP server on loopback for as long as the block lasts: what it got, and its port."""
    mails, port = Mails(), free_port()
    controller = Controller(mails, hostname="127.0.0.1", port=port)
    controller.start()
    try:
        yield mails, port
    finally:
        controller.stop()
