"""`make demo`: templates travel from a locked-down sshd to a subscribable library, on this machine alone.

Everything is real (sshd with rrsync, rsync, Caddy) and on loopback; nothing needs root. With a terminal the
library stays up until Ctrl-C, without one the demonstration ends by itself. Files and logs are in ``.demo/``.

CLR_DEMO_FOLDER names another folder.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clr_client.text import size

from support.server import Server
from support.templates import TemplateMaker, sample_library

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]
FOLDER = Path(os.environ.get("CLR_DEMO_FOLDER", ROOT / ".demo"))
CLR = str(Path(sys.executable).with_name("clr"))
FIRST_SYNC_SECONDS = 120
WEB_SERVER_SECONDS = 10


class DemoError(Exception):
    """The demonstration cannot go on; the text says why."""


def main() -> int:
    """Tell the story; 0 when every step did what it should."""
    for number in (signal.SIGINT, signal.SIGTERM):  # a background job inherits an ignored SIGINT
        signal.signal(number, signal.default_int_handler)
    try:
        with tempfile.TemporaryDirectory(prefix="clr-demo-") as run_dir:
            demonstrate(Path(run_dir))
    except KeyboardInterrupt:
        say("\nInterrupted; all processes are ended.")
        return 130
    except (DemoError, OSError, subprocess.SubprocessError) as error:
        print(f"\nThe demonstration failed: {error}\nLogs: {FOLDER}/*.log", file=sys.stderr)
        return 1
    return 0


def demonstrate(run_dir: Path) -> None:
    """Start both sites, sync, change the library, sync again, read the result as vSphere would."""
    if FOLDER.exists():
        shutil.rmtree(FOLDER)
    library = FOLDER / "server" / "library"
    cache = FOLDER / "cache"
    sample_library(library, cache)

    say("1. The primary site: a library, and an sshd where a site's key can read it and nothing else")
    show_library(library)
    with Server(library, FOLDER / "server") as server:
        refuse_a_shell(server)

        http_port, https_port = free_ports(2)
        url = f"http://127.0.0.1:{http_port}/lib.json"
        environment = client_environment(server, run_dir, http_port, https_port)
        say("\n2. A remote site starts `clr run`: it serves at once, syncs, and publishes")
        with client(environment) as process:
            wait_for_first_sync(process)
            wait_for_web_server(http_port)
            show_run(library)

            say("\n3. At the primary site a disk is patched, a template added, one removed; then `clr sync`")
            sample_library(library, cache, revision=1)
            TemplateMaker(cache, megabytes=2).template(library / "Jump host", name="jump-host", flavour="jump")
            (library / "tools.iso").unlink()
            clr("sync", environment=environment, log="sync.log")
            show_run(library)

            say("\n4. A strict subscriber reads the library, every byte of it: `clr check URL --full`")
            clr("check", url, "--full", environment=environment, log="check.log")
            say(indented((FOLDER / "check.log").read_text(encoding="utf-8")))

            say("\nSubscribe to this URL in vSphere (here it is reachable from this machine only):\n")
            say(f"   {url}")
            if sys.stdin.isatty():
                linger(process)
    say(f"\nAll processes are ended. What they wrote is in {FOLDER.name}/; `make clean` removes it.")


def client_environment(server: Server, run_dir: Path, http_port: int, https_port: int) -> dict[str, str]:
    """The client's settings: environment variables only, as in a container."""
    site = FOLDER / "client"
    keys = site / "ssh"
    keys.mkdir(parents=True)
    shutil.copy(server.identity, keys / "id_syncer")
    (keys / "id_syncer").chmod(0o600)
    folders = {
        "CLR_LIBRARY_DIR": site / "library",
        "CLR_DATA_DIR": site / "caddy",
        "CLR_CERTS_DIR": site / "certs",
    }
    for folder in folders.values():
        folder.mkdir(parents=True)
    return {
        "PATH": os.environ["PATH"],
        "HOME": str(site),
        "LANG": "C.UTF-8",
        "SYNC_PEER": "127.0.0.1",
        "SYNC_PORT": str(server.port),
        "SYNC_USER": server.user,
        "SYNC_HOST_KEY": ",".join(server.host_key_fingerprints),
        "LIBRARY_NAME": "Demo",
        "LIBRARY_BROWSE": "true",
        "HTTP_PORT": str(http_port),
        "HTTPS_PORT": str(https_port),
        "CLR_KEYS_DIR": str(keys),
        "CLR_RUN_DIR": str(run_dir),
        **{name: str(folder) for name, folder in folders.items()},
    }


@contextlib.contextmanager
def client(environment: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """``clr run`` with its output in ``client.log``; ended with everything it started."""
    with (FOLDER / "client.log").open("wb") as log:
        process = subprocess.Popen(
            [CLR, "run"],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            say("`clr run` did not end within 30 seconds and was killed")


def wait_for_first_sync(process: subprocess.Popen[bytes]) -> None:
    """Return once a sync was reported."""
    deadline = time.monotonic() + FIRST_SYNC_SECONDS
    while not last_run():
        if process.poll() is not None:
            raise DemoError(f"`clr run` ended with exit code {process.returncode}:\n{tail('client.log')}")
        if time.monotonic() > deadline:
            raise DemoError(f"no sync within {FIRST_SYNC_SECONDS} seconds:\n{tail('client.log')}")
        time.sleep(0.1)


def wait_for_web_server(port: int) -> None:
    """Return once the library is served."""
    deadline = time.monotonic() + WEB_SERVER_SECONDS
    while True:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        with contextlib.suppress(OSError), contextlib.closing(connection):
            connection.request("GET", "/lib.json")
            if connection.getresponse().status == http.HTTPStatus.OK:
                return
        if time.monotonic() > deadline:
            raise DemoError(f"the web server does not serve the library:\n{tail('client.log')}")
        time.sleep(0.1)


def clr(*words: str, environment: dict[str, str], log: str) -> None:
    """Run a command of the client to its end, output into a log."""
    with (FOLDER / log).open("wb") as output:
        done = subprocess.run(
            [CLR, *words],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            timeout=600,
            check=False,
        )
    if done.returncode != 0:
        raise DemoError(f"`clr {' '.join(words)}` ended with exit code {done.returncode}:\n{tail(log)}")


def last_run() -> dict[str, Any]:
    """The newest entry of status.json; empty before the first."""
    try:
        status = json.loads((FOLDER / "client" / "library" / "status.json").read_bytes())
    except (FileNotFoundError, ValueError):
        return {}
    return status["runs"][0] if status["runs"] else {}


def show_run(library: Path) -> None:
    """Say what the newest run did, and how much of the library crossed the line for it."""
    run = last_run()
    version = run["version"]
    if run["result"] != "success":
        raise DemoError(f"the sync did not succeed: {run['summary']}")
    for verb in ("added", "updated", "removed"):
        if run[verb]:
            say(f"   {verb + ':':9}{', '.join(run[verb])}")
    crossed = run["sent_bytes"] + run["received_bytes"]
    total = sum(path.stat().st_size for path in library.rglob("*") if path.is_file())
    share = f"{100 * crossed / total:.1f} % of the library's {size(total)}"
    say(f"   {size(crossed)} crossed the line ({share}) in {run['seconds']:.1f} s; library version {version}")


def show_library(library: Path) -> None:
    """List what lies in the library."""
    for entry in sorted(library.iterdir()):
        files = sorted(entry.iterdir()) if entry.is_dir() else [entry]
        held = "/: " + ", ".join(path.name for path in files) if entry.is_dir() else ""
        say(f"   {size(sum(path.stat().st_size for path in files)):>8}  {entry.name}{held}")


def refuse_a_shell(server: Server) -> None:
    """Try to do more with the key than it is for."""
    options = ("BatchMode=yes", "StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null", "LogLevel=ERROR")
    argv = ["ssh", "-F", "none", "-i", str(server.identity), "-p", str(server.port)]
    argv += [word for option in options for word in ("-o", option)]
    done = subprocess.run(
        [*argv, f"{server.user}@127.0.0.1", "id"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=60,
        check=False,
    )
    if done.returncode == 0 or b"uid=" in done.stdout:
        raise DemoError("the key gave a shell")
    said = (done.stderr or done.stdout).decode(errors="replace").strip().splitlines()
    say(f"   $ ssh -i id_syncer -p {server.port} {server.user}@127.0.0.1 id")
    say(f"   {said[-1] if said else 'refused'}")


def linger(process: subprocess.Popen[bytes]) -> None:
    """Keep the library up until somebody has seen enough."""
    with contextlib.suppress(KeyboardInterrupt):
        say("\nIt stays up until you press Ctrl-C.")
        code = process.wait()
        raise DemoError(f"`clr run` ended with exit code {code}:\n{tail('client.log')}")


def free_ports(count: int) -> list[int]:
    """Ports on loopback that nobody listens on."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for sock in sockets:
            sock.bind(("127.0.0.1", 0))
        return [sock.getsockname()[1] for sock in sockets]


def tail(log: str, lines: int = 15) -> str:
    """The end of a log."""
    return indented("\n".join((FOLDER / log).read_text(errors="replace").splitlines()[-lines:]))


def indented(text: str) -> str:
    """The text, each line moved in."""
    return "\n".join(f"   {line}" for line in text.strip().splitlines())


def say(text: str) -> None:
    """One part of the story, seen at once."""
    print(text, flush=True)


if __name__ == "__main__":
    sys.exit(main())
