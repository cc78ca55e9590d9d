"""Web servers for tests: Caddy as a plain file server, and one that can be told to misbehave."""

from __future__ import annotations

import contextlib
import functools
import http.server
import json
import os
import ssl
import subprocess
import threading
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

from support.server import free_port, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


@contextlib.contextmanager
def caddy(
    root: Path, work: Path, *handlers: dict[str, Any], certificate: tuple[Path, Path] | None = None
) -> Iterator[str]:
    """Caddy serving ``root`` behind ``handlers``; the URL of its top. ``certificate``: chain and key, for HTTPS."""
    port = free_port()
    server: dict[str, Any] = {
        "listen": [f"127.0.0.1:{port}"],
        "automatic_https": {"disable": True},
        "routes": [{"handle": [*handlers, {"handler": "file_server", "root": str(root)}]}],
    }
    apps: dict[str, Any] = {"http": {"servers": {"library": server}}}
    if certificate:
        server["tls_connection_policies"] = [{}]
        files = {"certificate": str(certificate[0]), "key": str(certificate[1])}
        apps["tls"] = {"certificates": {"load_files": [files]}}
    config = work / "caddy.json"
    config.write_text(json.dumps({"admin": {"disabled": True}, "apps": apps}))
    url = f"{'https' if certificate else 'http'}://127.0.0.1:{port}"
    environment = {**os.environ, "HOME": str(work), "XDG_DATA_HOME": str(work), "XDG_CONFIG_HOME": str(work)}
    with (work / "caddy.log").open("wb") as log:
        process = subprocess.Popen(
            ["caddy", "run", "--config", str(config)], stdout=log, stderr=log, env=environment, stdin=subprocess.DEVNULL
        )
        try:
            wait_until(lambda: process.poll() is not None or _answers(url), what="Caddy")
            assert process.poll() is None, (work / "caddy.log").read_text()
            yield url
        finally:
            process.terminate()
            process.wait(10)


def _answers(url: str) -> bool:
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    try:
        urllib.request.urlopen(url, timeout=5, context=context).close()
    except urllib.error.HTTPError as error:
        error.close()
    except OSError:
        return False
    return True


Behaviour: TypeAlias = "Callable[[Handler], None]"


@dataclass
class Misbehaving:
    """A server of a folder: what ``behaviours`` has for a path replaces the right answer.

    Keys are paths as they are requested, or ``METHOD path``; ``requests`` collects method, path and headers.
    """

    root: Path
    url: str = ""
    context: ssl.SSLContext | None = None
    connections: int = 0
    behaviours: dict[str, Behaviour] = field(default_factory=dict)
    requests: list[tuple[str, str, dict[str, str]]] = field(default_factory=list)

    def paths(self, method: str = "GET") -> list[str]:
        """What was requested by ``method``, in order."""
        return [path for used, path, _ in self.requests if used == method]


class Handler(http.server.BaseHTTPRequestHandler):
    """Files with HEAD, ranges and keep-alive."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def __init__(self, site: Misbehaving, *args: Any) -> None:
        self.site = site
        site.connections += 1
        super().__init__(*args)

    def do_GET(self) -> None:
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.site.requests.append((self.command, self.path, headers))
        behaviours = self.site.behaviours
        behaviour = behaviours.get(f"{self.command} {self.path}") or behaviours.get(self.path)
        if behaviour:
            behaviour(self)
        else:
            self.serve()

    do_HEAD = do_GET  # noqa: N815

    def serve(self) -> None:
        """The right answer."""
        path = self.site.root / urllib.request.url2pathname(self.path.partition("?")[0]).lstrip("/")
        if not path.is_file():
            self.answer(404)
            return
        data = path.read_bytes()
        wanted = self.headers.get("Range")
        if not wanted:
            self.answer(200, data)
            return
        first, _, last = wanted.removeprefix("bytes=").partition("-")
        part = data[int(first) : int(last) + 1]
        if part:
            self.answer(206, part, {"Content-Range": f"bytes {first}-{last}/{len(data)}"})
        else:
            self.answer(416)

    def answer(
        self, status: int, body: bytes = b"", headers: dict[str, str] | None = None, length: int | None = -1
    ) -> None:
        """Send this; ``length`` is what Content-Length says, -1 the truth, None nothing."""
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        if length is None:
            self.close_connection = True
        else:
            self.send_header("Content-Length", str(len(body) if length == -1 else length))
        if length is not None and length > len(body):
            self.close_connection = True
        self.end_headers()
        if self.command != "HEAD":
            with contextlib.suppress(ConnectionError):
                self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Quiet."""


@contextlib.contextmanager
def misbehaving(root: Path, certificate: tuple[Path, Path] | None = None) -> Iterator[Misbehaving]:
    """A server of ``root`` in this process; set its ``behaviours`` at any time."""
    site = Misbehaving(root)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, site))
    server.daemon_threads = True
    if certificate:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*certificate)
        site.context = context
        server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    site.url = f"{'https' if certificate else 'http'}://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield site
    finally:
        server.shutdown()
        thread.join()
        server.socket.close()


def certificate(folder: Path, name: str = "127.0.0.1") -> tuple[Path, Path]:
    """A self-signed certificate for an address, and its key."""
    folder.mkdir(parents=True, exist_ok=True)
    chain, key = folder / "server.crt", folder / "server.key"
    subprocess.run(
        [
            "openssl",
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
            "-nodes",
            "-days",
            "2",
            "-subj",
            f"/CN={name}",
            "-addext",
            f"subjectAltName=IP:{name}",
            "-keyout",
            str(key),
            "-out",
            str(chain),
        ],
        check=True,
        capture_output=True,
    )
    return chain, key
