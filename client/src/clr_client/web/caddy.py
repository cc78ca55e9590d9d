"""Caddy as a supervised child: started, told new configurations, restarted when it dies, stopped."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import logging
import os
import re
import shutil
import signal
import socket
import subprocess
import time
from typing import TYPE_CHECKING, Any

from clr_client.errors import WebServerError
from clr_client.web.config import admin_socket

if TYPE_CHECKING:
    from clr_client.settings import Settings

log = logging.getLogger("clr.caddy")

FIRST_WAIT = 1.0
LONGEST_WAIT = 60.0
STABLE = 60.0
"""Seconds after which a process counts as having worked, so that the next restart is quick again."""
DRAIN = 5.0
"""Seconds that downloads get to finish when the site is stopped."""
READY = 30.0
LONGEST_LINE = 1 << 18
LEVELS = {"debug": logging.DEBUG, "info": logging.DEBUG, "warn": logging.WARNING, "error": logging.ERROR}
# What the child may know of our environment: no secret. The proxies are for ACME.
PASSED = (
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "NO_PROXY",
    "http_proxy",
    "https_proxy",
    "no_proxy",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
)
# Caddy's warnings about what is meant to be so.
EXPECTED = re.compile(
    r"automatic HTTPS is completely disabled|HTTP/2 skipped because it requires TLS"
    r"|admin endpoint on open interface|stapling OCSP|^exiting; byeee"
)
# What people wait for when Caddy gets certificates itself.
AWAITED = re.compile(r"^(obtaining|renewing) certificate|certificate (obtained|renewed) successfully")
NOT_EXTRA = {"level", "ts", "logger", "msg", "stacktrace"}


def versions() -> dict[str, str]:
    """The version of Caddy, ``missing`` when it cannot be run."""
    try:
        done = subprocess.run(["caddy", "version"], capture_output=True, timeout=10, check=False, env=_path())
    except (OSError, subprocess.TimeoutExpired):
        return {"caddy": "missing"}
    words = done.stdout.decode("utf-8", "replace").split()
    return {"caddy": words[0].removeprefix("v") if words else "unknown"}


async def hash_password(password: str, program: str = "caddy") -> str:
    """Return the bcrypt hash of a password, made by Caddy; the password goes through a pipe only.

    :raises WebServerError: Caddy is missing or refuses the password, as it does beyond 72 bytes.
    """
    if len(password.encode()) > 72:
        raise WebServerError("LIBRARY_PASSWORD is longer than 72 bytes", "Bcrypt takes no more; use a shorter one")
    try:
        process = await asyncio.create_subprocess_exec(
            *(program, "hash-password"),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=_path(),
        )
        output, errors = await process.communicate(f"{password}\n".encode())
    except OSError as error:
        raise WebServerError(f"{program} cannot be started ({error.strerror})") from None
    if process.returncode or not output.startswith(b"$2"):
        raise WebServerError(f"Caddy cannot hash LIBRARY_PASSWORD: {errors.decode('utf-8', 'replace').strip()}")
    return output.decode().strip()


def ports(settings: Settings) -> tuple[int, ...]:
    """Return on which ports this site's own Caddy listens; none while it does not run. Blocking."""
    connection = _UnixConnection(str(admin_socket(settings)))
    try:
        connection.request("GET", "/config/apps/http/servers", headers={"Host": ""})
        servers = json.loads(connection.getresponse().read())
        addresses = [address for server in servers.values() for address in server["listen"]]
        return tuple(int(address.rpartition(":")[2]) for address in addresses)
    except (OSError, http.client.HTTPException, ValueError, TypeError, KeyError, AttributeError):
        return ()
    finally:
        connection.close()


class Caddy:
    """The web server's process. It serves from the library's folder, with the configuration given last.

    ``healthy`` tells whether it runs with a configuration it accepted. It is started again for ever, with pauses that
    double up to a minute.
    """

    def __init__(self, settings: Settings, program: str = "caddy") -> None:
        self.settings = settings
        self.program = program
        self.healthy = False
        self.restarts = 0
        self._config: dict[str, Any] = {}
        self._process: asyncio.subprocess.Process | None = None
        self._supervisor: asyncio.Task[None] | None = None
        self._settled = asyncio.Event()
        self._stopping = asyncio.Event()
        self._said = ""

    async def start(self, config: dict[str, Any]) -> None:
        """Start serving; returns when Caddy serves or has failed for the first time, which is logged."""
        self._config = config
        self._supervisor = asyncio.create_task(self._supervise(), name="caddy")
        await self._settled.wait()

    async def reload(self, config: dict[str, Any]) -> None:
        """Replace the configuration; downloads that are under way go on.

        While Caddy is down the new configuration is what it starts with next.

        :raises WebServerError: Caddy does not take it; the old one stays.
        """
        if not self.healthy:
            self._config = config
            return
        try:
            status, text = await asyncio.to_thread(self._ask, "POST", "/load", json.dumps(config).encode())
        except OSError as error:
            raise WebServerError(f"Caddy cannot be told its new configuration ({error})") from None
        if status != 200:
            raise WebServerError(f"Caddy refuses its new configuration: {_reason(text)}")
        self._config = config

    async def stop(self) -> None:
        """Take no more connections, let downloads finish for ``DRAIN`` seconds, and end."""
        if self._supervisor is None:
            return
        # Nothing is cancelled here: cancelling asyncio's creation of a process can wait for ever (Python 3.11).
        self._stopping.set()
        self._end(signal.SIGTERM)
        _, draining = await asyncio.wait({self._supervisor}, timeout=DRAIN)
        if draining:
            self._end(signal.SIGKILL)
            await asyncio.wait({self._supervisor}, timeout=DRAIN)

    def kill(self) -> None:
        """End at once."""
        self._end(signal.SIGKILL)

    def _end(self, number: signal.Signals) -> None:
        if self._process is not None and self._process.returncode is None:
            _signal(self._process, number)

    async def _supervise(self) -> None:
        wait = FIRST_WAIT
        while True:
            started = time.monotonic()
            ended = await self._run_once()
            self.healthy = False
            self._settled.set()
            if self._stopping.is_set():
                return
            if time.monotonic() - started >= STABLE:
                wait = FIRST_WAIT
            log.error("%s; starting it again in %.0f s", ended, wait)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), wait)
                return
            self.restarts += 1
            wait = min(wait * 2, LONGEST_WAIT)

    async def _run_once(self) -> str:
        """Run Caddy until it ends, and return why it did."""
        self._said = ""
        if shutil.which(self.program) is None:
            return f"Caddy cannot be started ({self.program} is missing)"
        try:
            process = await asyncio.create_subprocess_exec(
                *self._argv(),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.PIPE,
                cwd=self.settings.clr_library_dir,
                env=self._environment(),
                start_new_session=True,
                umask=0o077,
            )
        except OSError as error:
            return f"Caddy cannot be started ({error.strerror}: {error.filename})"
        self._process = process
        if self._stopping.is_set():
            self._end(signal.SIGTERM)
        ready = asyncio.create_task(self._await_ready(process))
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._feed(process))
                group.create_task(self._listen(process))
        finally:
            await process.wait()
            ready.cancel()
        return self._why(process.returncode)

    def _argv(self) -> list[str]:
        """Caddy, which the kernel ends when this process is killed: an orphan would keep the port."""
        setpriv = shutil.which("setpriv")
        tied = [setpriv, "--pdeathsig", "KILL"] if setpriv else []
        return [*tied, self.program, "run", "--config", "-"]

    def _environment(self) -> dict[str, str]:
        homes = {"HOME": self.settings.clr_run_dir, "XDG_CONFIG_HOME": self.settings.clr_run_dir}
        passed = {name: os.environ[name] for name in PASSED if name in os.environ}
        return {**_path(), **passed, **{name: str(path) for name, path in homes.items()}} | {
            "XDG_DATA_HOME": str(self.settings.clr_data_dir)
        }

    async def _feed(self, process: asyncio.subprocess.Process) -> None:
        if process.stdin is None:
            return
        with contextlib.suppress(ConnectionError):
            process.stdin.write(json.dumps(self._config).encode())
            await process.stdin.drain()
        process.stdin.close()

    async def _await_ready(self, process: asyncio.subprocess.Process) -> None:
        """Wait until Caddy has taken its configuration, which it answers questions about only then."""
        deadline = time.monotonic() + READY
        while process.returncode is None and time.monotonic() < deadline:
            try:
                status, _ = await asyncio.to_thread(self._ask, "GET", "/config/")
            except (OSError, http.client.HTTPException):
                status = 0
            if status == 200:
                self.healthy = True
                self._settled.set()
                return
            await asyncio.sleep(0.05)
        if process.returncode is None:
            log.error("Caddy does not answer at %s", admin_socket(self.settings))
            _signal(process, signal.SIGKILL)

    def _ask(self, method: str, path: str, body: bytes | None = None) -> tuple[int, str]:
        connection = _UnixConnection(str(admin_socket(self.settings)))
        try:
            connection.request(method, path, body, {"Host": "", "Content-Type": "application/json"})
            response = connection.getresponse()
            return response.status, response.read().decode("utf-8", "replace")
        finally:
            connection.close()

    async def _listen(self, process: asyncio.subprocess.Process) -> None:
        """Pass on what Caddy says, line by line, however long its lines are."""
        if process.stderr is None:
            return
        rest = b""
        while chunk := await process.stderr.read(1 << 16):
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                self._say(line.decode("utf-8", "replace"))
            if len(rest) > LONGEST_LINE:
                self._say(rest.decode("utf-8", "replace"))
                rest = b""
        if rest:
            self._say(rest.decode("utf-8", "replace"))

    def _say(self, line: str) -> None:
        if not line.strip():
            return
        try:
            event = json.loads(line)
            level = LEVELS.get(event["level"], logging.ERROR)
            logger, text = str(event.get("logger", "")), str(event["msg"])
        except (ValueError, TypeError, KeyError, AttributeError):
            # Outside its log Caddy says only why it could not start; that goes into the line about its end.
            self._said = line.strip()
            return
        if logger.startswith("http.log.access"):
            log.debug("%s", _access(event))
            return
        if event["level"] == "info" and AWAITED.search(text):
            level = logging.INFO
        if EXPECTED.search(text):
            level = logging.DEBUG
        extras = [f"{key}={_short(value)}" for key, value in event.items() if key not in NOT_EXTRA]
        log.log(level, "%s", " ".join([f"{logger}:" if logger else "caddy:", text, *extras]))

    def _why(self, code: int | None) -> str:
        if "address already in use" in self._said:
            ports = re.findall(r":(\d+): bind", self._said)
            return f"another program uses port {ports[0] if ports else '?'}, so Caddy cannot listen there"
        if "permission denied" in self._said and "listen" in self._said:
            return f"uid {os.geteuid()} may not listen there (capability NET_BIND_SERVICE): {_reason(self._said)}"
        how = f"signal {-code}" if code is not None and code < 0 else f"exit code {code}"
        return f"Caddy ended with {how}{f': {_reason(self._said)}' if self._said else ''}"


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=READY)
        self.path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self.path)


def _path() -> dict[str, str]:
    return {"PATH": os.environ.get("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")}


def _signal(process: asyncio.subprocess.Process, number: signal.Signals) -> None:
    """Signal the whole process group; it is Caddy's own."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, number)


def _reason(text: str) -> str:
    """The message within Caddy's JSON answer or line."""
    with contextlib.suppress(ValueError, TypeError, KeyError):
        return str(json.loads(text)["error"])
    return text.strip().removeprefix("Error: ")[:500]


def _short(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 300 else f"{text[:300]}…"


def _access(event: dict[str, Any]) -> str:
    request = event.get("request", {})
    return (
        f"{request.get('remote_addr') or request.get('remote_ip')} {request.get('method')} {request.get('uri')}:"
        f" {event.get('status')}, {event.get('size')} bytes, {event.get('duration')} s"
    )
