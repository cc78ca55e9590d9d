"""The client's web site on loopback, with Debian 12's Caddy and with Debian 13's."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import os
import shutil
import socket
import ssl
import subprocess
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import pytest
from clr_client import settings as clr_settings
from clr_client.web.site import Site

from support.server import free_port

if TYPE_CHECKING:
    from collections.abc import Coroutine, Iterator

T = TypeVar("T")
CACHE = Path(__file__).parents[2] / ".cache"
DEBIAN_13 = CACHE / "caddy-2.11" / "caddy"
PROGRAMS = ["debian-12", "debian-13"]


def program(name: str) -> str:
    """The path of a Caddy; the test is skipped when it cannot be had."""
    if name == "debian-12":
        return shutil.which("caddy") or pytest.skip("caddy is not installed")
    if not DEBIAN_13.exists():
        try:
            _fetch_debian_13()
        except (OSError, subprocess.SubprocessError) as error:
            missing(f"the Caddy of Debian 13's backports cannot be fetched: {error}")
    return str(DEBIAN_13)


def missing(what: str) -> NoReturn:
    """Skip a test for want of something; in continuous integration that is a failure."""
    if os.environ.get("CI"):
        pytest.fail(what)
    pytest.skip(what)


def _fetch_debian_13() -> None:
    """Unpack the package of Debian 13's backports into the cache, with apt but without touching this system's."""
    work = CACHE / "apt"
    for folder in ("lists/partial", "cache/archives/partial"):
        (work / folder).mkdir(parents=True, exist_ok=True)
    ask = ["apt-get", "indextargets", "--format", "$(REPO_URI)", "Created-By: Packages", "Label: Debian"]
    known = subprocess.run(ask, capture_output=True, text=True, check=False).stdout.split()
    if not known:
        raise OSError("apt knows no Debian mirror here")
    mirror = known[0]
    keyring = "/usr/share/keyrings/debian-archive-keyring.gpg"
    (work / "sources.list").write_text(f"deb [signed-by={keyring}] {mirror} trixie-backports main\n")
    paths = {
        "Dir::Etc::sourcelist": work / "sources.list",
        "Dir::Etc::sourceparts": "-",
        "Dir::State::lists": work / "lists",
        "Dir::Cache": work / "cache",
        "APT::Sandbox::User": "root",
    }
    options = [word for name, value in paths.items() for word in ("-o", f"{name}={value}")]
    for argv in (["apt-get", *options, "update"], ["apt-get", *options, "download", "caddy"]):
        subprocess.run(argv, cwd=work, check=True, capture_output=True, timeout=120)
    package = next(work.glob("caddy_*.deb"))
    subprocess.run(["dpkg-deb", "-x", package, work / "root"], check=True, timeout=60)
    DEBIAN_13.parent.mkdir(exist_ok=True)
    shutil.copy(work / "root" / "usr" / "bin" / "caddy", DEBIAN_13)
    shutil.rmtree(work)


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes


class Web:
    """A site's folders below ``home`` and its web server, which runs in a thread of its own.

    Keyword arguments are settings. ``home`` should be short: a unix socket's path has at most 107 characters.
    """

    def __init__(self, home: Path, program: str, **environment: str) -> None:
        self.library, self.certs, self.run_dir = home / "library", home / "certs", home / "run"
        self.http, self.https = free_port(), free_port()
        self.environment = {
            "SYNC_PEER": "127.0.0.1:1",
            "HTTP_PORT": str(self.http),
            "HTTPS_PORT": str(self.https),
            "CLR_LIBRARY_DIR": str(self.library),
            "CLR_CERTS_DIR": str(self.certs),
            "CLR_DATA_DIR": str(home / "data"),
            "CLR_RUN_DIR": str(self.run_dir),
            **environment,
        }
        self.certs.mkdir(parents=True, exist_ok=True)
        self.settings = clr_settings.load(self.environment)[0]
        self.site = Site(self.settings, program)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def __enter__(self) -> Web:
        self._thread.start()
        self.run(self.site.start())
        return self

    def __exit__(self, *_: object) -> None:
        self.run(self.site.stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine in the web server's thread."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(60)

    def publish(self, number: int, files: dict[str, bytes]) -> Path:
        """Publish a generation as the store does: item ``u1`` in version ``number``, as ``Tmpl one``."""
        generation, tree = self.library / "generations" / str(number), self.library / "items" / "u1" / str(number)
        generation.mkdir(parents=True)
        tree.mkdir(parents=True)
        for name, data in {"item.json": b"{}", **files}.items():
            (tree / name).write_bytes(data)
        (generation / "lib.json").write_bytes(b'{"version": "%d"}' % number)
        (generation / "items.json").write_bytes(b'{"items": [%d]}' % number)
        (generation / ".state.json").write_bytes(b"state")
        (generation / "_items").symlink_to("../../items")
        (generation / "Tmpl one").symlink_to(f"../../items/u1/{number}")
        new = self.library / ".new-current"
        new.symlink_to(f"generations/{number}")
        new.rename(self.library / "current")
        return tree

    def connect(
        self, *, tls: bool = False, name: str | None = None, context: ssl.SSLContext | None = None
    ) -> socket.socket:
        """A connection to the site, over TLS with any certificate unless a context is given."""
        plain = socket.create_connection(("127.0.0.1", self.https if tls else self.http), timeout=30)
        if not tls:
            return plain
        if context is None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        return context.wrap_socket(plain, server_hostname=name)

    def ask(
        self,
        path: str | bytes,
        method: str = "GET",
        headers: dict[str, str] | None = None,
        *,
        tls: bool = False,
        name: str | None = None,
    ) -> Answer:
        """One request, its path sent as it is."""
        with contextlib.closing(self.connect(tls=tls, name=name)) as connection:
            lines = {"Host": name or "127.0.0.1", "Connection": "close", **(headers or {})}
            raw = path if isinstance(path, bytes) else path.encode()
            head = "".join(f"{key}: {value}\r\n" for key, value in lines.items())
            connection.sendall(method.encode() + b" " + raw + b" HTTP/1.1\r\n" + head.encode() + b"\r\n")
            response = http.client.HTTPResponse(connection, method=method)
            response.begin()
            found = {key.lower(): value for key, value in response.getheaders()}
            return Answer(response.status, found, response.read())


@contextlib.contextmanager
def web(home: Path, program: str, **environment: str) -> Iterator[Web]:
    """Serve with these settings for as long as the block runs."""
    with Web(home, program, **environment) as site:
        yield site


@contextlib.contextmanager
def watching(home: Path, program: str, name: str, **environment: str) -> Iterator[Web]:
    """A site with an own certificate for ``name``, which looks at its files and the clock again and again."""
    with web(home, program, TLS_NAME=name, TLS_CUSTOM_CERT="true", **environment) as site:
        site.publish(1, {"disk.vmdk": b"disk"})

        async def start() -> asyncio.Task[None]:
            return asyncio.create_task(site.site.watch())

        async def stop(task: asyncio.Task[None]) -> None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

        task = site.run(start())
        try:
            yield site
        finally:
            site.run(stop(task))


def make_pair(folder: Path, name: str = "library.example.com", days: int = 90) -> str:
    """Put a new cert.pem and key.pem into ``folder``, as people do: one after the other. Returns the serial number.

    ``days`` of 0 makes a certificate that expired long ago.
    """
    folder.mkdir(parents=True, exist_ok=True)
    kind = "IP" if name.replace(".", "").isdigit() else "DNS"
    key, certificate = folder / ".key.new", folder / ".cert.new"
    argv = ["openssl", "req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj", f"/CN={name}"]
    if days > 0:
        argv += ["-x509", "-days", str(days), "-addext", f"subjectAltName={kind}:{name}"]
        subprocess.run([*argv, "-keyout", str(key), "-out", str(certificate)], check=True, capture_output=True)
    else:
        _make_expired(folder, argv, f"{kind}:{name}")
    show = ["openssl", "x509", "-noout", "-serial", "-in", str(folder / ".cert.new")]
    serial = subprocess.run(show, check=True, capture_output=True, text=True).stdout.strip().removeprefix("serial=")
    (folder / ".cert.new").rename(folder / "cert.pem")
    (folder / ".key.new").rename(folder / "key.pem")
    return serial


def _make_expired(folder: Path, request: list[str], alternative: str) -> None:
    config = folder / ".ca.conf"
    config.write_text(
        f"[ca]\ndefault_ca=own\n[own]\ndatabase={folder}/.index\nnew_certs_dir={folder}\nrand_serial=yes\n"
        f"default_md=sha256\npolicy=any\nx509_extensions=names\n[any]\ncommonName=supplied\n"
        f"[names]\nsubjectAltName={alternative}\n"
    )
    (folder / ".index").touch()
    asked, key = str(folder / ".csr"), str(folder / ".key.new")
    sign = ["openssl", "ca", "-batch", "-notext", "-config", str(config), "-selfsign", "-keyfile", key, "-in", asked]
    sign += ["-startdate", "20200101000000Z", "-enddate", "20210101000000Z", "-out", str(folder / ".cert.new")]
    for argv in ([*request, "-keyout", key, "-out", asked], sign):
        subprocess.run(argv, check=True, capture_output=True)


def serial(certificate: bytes) -> str:
    """The serial number of a certificate in DER form."""
    show = ["openssl", "x509", "-noout", "-serial", "-inform", "der"]
    return subprocess.run(show, input=certificate, check=True, capture_output=True).stdout.decode().strip()[7:]
