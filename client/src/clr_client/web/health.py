"""Whether the container does its work: cheap questions with telling answers."""

from __future__ import annotations

import http.client
import json
import ssl
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from clr_client.errors import Trouble, WebServerError
from clr_client.web.certificate import load_pair

if TYPE_CHECKING:
    from pathlib import Path

    from clr_client.settings import Settings

BEAT = 15.0
"""Seconds between heartbeats of `clr run`."""
STALE = 90.0
FAILURES = 3
TIMEOUT = 8.0
HANGS = Trouble(
    "`clr run` has shown no sign of life for {seconds} s",
    "Restart the container: docker restart clr-client; and please report it",
)


def heartbeat(settings: Settings) -> Path:
    """The file that `clr run` touches every ``BEAT`` seconds."""
    return settings.clr_run_dir / "alive"


def problems(settings: Settings, status: Path) -> list[str]:
    """Return what is wrong, in a line each; nothing when all is well. Blocking.

    Unhealthy is: `clr run` hangs, the library is not served, three runs failed in a row, or the last one failed while
    nothing was ever published.

    :param status: status.json.
    """
    return [*_beats(heartbeat(settings)), *_serves(settings), *_syncs(status)]


def silence(file: Path) -> float:
    """Return for how many seconds `clr run` has shown no sign of life. Raises OSError when it does not run."""
    return abs(time.time() - file.stat().st_mtime)  # a clock that was set back must not hide that it hangs


def _beats(file: Path) -> list[str]:
    try:
        age = silence(file)
    except OSError:
        return ["`clr run` is not running, or has not come up yet"]
    return [HANGS.told(seconds=f"{age:.0f}")[0]] if age > STALE else []


def _serves(settings: Settings) -> list[str]:
    if settings.tls_custom_cert:
        try:
            load_pair(settings.clr_certs_dir, settings.tls_name, datetime.now(UTC))
        except WebServerError as error:
            return [str(error)]
    port = settings.https_port if settings.tls_name else settings.http_port
    try:
        status, body = _get(settings, port)
    except (OSError, http.client.HTTPException) as error:
        return [f"the web server does not answer on port {port} ({error})"]
    if status in {200, 401} or (status == 503 and _is_progress(body)):
        return []
    return [f"the web server answers {status} to /lib.json on port {port}"]


def _get(settings: Settings, port: int) -> tuple[int, bytes]:
    connection: http.client.HTTPConnection = http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT)
    if settings.tls_name:
        connection = _NamedConnection(port, settings.tls_name)
    try:
        connection.request("GET", "/lib.json", headers={"Host": settings.tls_name or "localhost"})
        response = connection.getresponse()
        return response.status, response.read(1 << 20)
    finally:
        connection.close()


class _NamedConnection(http.client.HTTPSConnection):
    """TLS to this host under the site's name. Who answers on loopback needs no proof."""

    def __init__(self, port: int, name: str) -> None:
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self.context.check_hostname = False
        self.context.verify_mode = ssl.CERT_NONE
        super().__init__("127.0.0.1", port, timeout=TIMEOUT, context=self.context)
        self.name = name

    def connect(self) -> None:
        http.client.HTTPConnection.connect(self)
        self.sock = self.context.wrap_socket(self.sock, server_hostname=self.name)


def _is_progress(body: bytes) -> bool:
    try:
        return "status" in json.loads(body)
    except (ValueError, TypeError):
        return False


def _syncs(status: Path) -> list[str]:
    try:
        told = json.loads(status.read_text(encoding="utf-8"))
        failures, published = int(told["failures_in_row"]), bool(told["published"])
    except (OSError, ValueError, TypeError, KeyError):
        return []  # no run has ended yet
    if failures >= FAILURES:
        return [f"the last {failures} syncs failed; see `clr status`"]
    if failures and not published:
        return ["nothing is published, and the last sync failed; see `clr status`"]
    return []
