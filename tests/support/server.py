"""The server on loopback without a container: the real entrypoint, sshd, serve-library and rrsync."""

from __future__ import annotations

import atexit
import contextlib
import os
import pwd
import random
import shlex
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Self, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

T = TypeVar("T")
SERVER = Path(__file__).resolve().parents[2] / "server"


def wait_until(condition: Callable[[], T], seconds: float = 15.0, what: str = "the condition") -> T:
    """Return the first true value of ``condition``; AssertionError after ``seconds``."""
    deadline = time.monotonic() + seconds
    while True:
        if value := condition():
            return value
        assert time.monotonic() < deadline, f"waited {seconds} s in vain for {what}"
        time.sleep(0.02)


def free_port() -> int:
    """Return a TCP port of 127.0.0.1 that nobody listens on now.

    It lies below the ports that the kernel gives to outgoing connections, so that none of these takes it meanwhile,
    and by chance, so that tests that run side by side hardly ever choose the same.
    """
    while True:
        port = random.SystemRandom().randrange(10_000, 32_000)
        with socket.socket() as listener, contextlib.suppress(OSError):
            listener.bind(("127.0.0.1", port))
            return port


def make_key(path: Path, *options: str, comment: str = "test-site") -> Path:
    """Make a key pair at ``path`` and ``path``.pub, without a passphrase; ed25519 by default."""
    argv = ["ssh-keygen", "-q", "-N", "", "-C", comment, "-f", str(path), *(options or ("-t", "ed25519"))]
    subprocess.run(argv, check=True, stdin=subprocess.DEVNULL)
    return path


def descendants(pid: int) -> Iterator[int]:
    """Yield the children of a process, their children, and so on."""
    try:
        tasks = list(Path(f"/proc/{pid}/task").iterdir())
        children = [int(child) for task in tasks for child in (task / "children").read_text().split()]
    except (FileNotFoundError, ProcessLookupError):
        return
    for child in children:
        yield child
        yield from descendants(child)


@cache
def _host_keys() -> Path:
    """One pair of host keys for all servers of a test run: 4096 bits of RSA take seconds to find."""
    folder = Path(tempfile.mkdtemp(prefix="clr-host-keys-"))
    atexit.register(shutil.rmtree, folder)
    make_key(folder / "ssh_host_ed25519_key")
    make_key(folder / "ssh_host_rsa_key", "-t", "rsa", "-b", "4096")
    return folder


class Server:
    """Serves ``library`` read-only on 127.0.0.1 to the account that runs the tests; a context manager.

    ``keys`` are public key files to let in; without any, a key of its own is made: ``identity``.
    ``key_folder`` is what the container has at /home/syncer/.ssh, ``host_key_folder`` the host keys' volume,
    ``log`` what ``docker logs`` would show. ``environment`` adds variables or, with None, takes one away;
    ``wrapper`` is a command to start the entrypoint with.
    """

    def __init__(
        self,
        library: Path,
        workdir: Path,
        *,
        port: int | None = None,
        keys: Sequence[Path] | None = None,
        environment: Mapping[str, str | None] | None = None,
        fresh_host_keys: bool = False,
        wrapper: Sequence[str] = (),
    ) -> None:
        self.library = library
        self.wrapper = wrapper
        self.host = "127.0.0.1"
        self.port = port or free_port()
        account = pwd.getpwuid(os.getuid())
        self.user = account.pw_name
        self.workdir = workdir
        self.identity = workdir / "identity"
        self.key_folder = workdir / "keys"
        self.host_key_folder = workdir / "host-keys"
        self.run_folder = workdir / "run"
        self.log = workdir / "server.log"
        self.process: subprocess.Popen[bytes] | None = None
        for folder in (workdir, self.key_folder, self.host_key_folder):
            folder.mkdir(parents=True, exist_ok=True)
        if keys is None:
            if not self.identity.exists():
                make_key(self.identity)
            keys = [self.identity.with_suffix(".pub")]
        for key in keys:
            shutil.copy(key, self.key_folder)
        if not fresh_host_keys and not any(self.host_key_folder.iterdir()):
            shutil.copytree(_host_keys(), self.host_key_folder, dirs_exist_ok=True)
        self.environment = self._environment(environment or {})

    def _environment(self, changes: Mapping[str, str | None]) -> dict[str, str]:
        # The tests' folders are often below /tmp, which StrictModes does not like.
        options = ["ListenAddress=127.0.0.1", "StrictModes=no", f"AllowUsers={self.user}"]
        # A shell that is not the first one reads no ~/.bashrc, whatever lies in this account's: the image has no bash.
        options.append("SetEnv=SHLVL=1")
        if self.user == "root":
            options.append("PermitRootLogin=prohibit-password")
            if _is_locked("root"):
                options.append("UsePAM=yes")
        values: dict[str, str | None] = {
            "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "CLR_ACCOUNT": self.user,
            "CLR_KEYS": str(self.key_folder),
            "CLR_HOST_KEYS": str(self.host_key_folder),
            "CLR_LIBRARY": str(self.library),
            "CLR_RUN": str(self.run_folder),
            "CLR_PORT": str(self.port),
            "CLR_SSHD_OPTIONS": " ".join(options),
            **changes,
        }
        return {name: value for name, value in values.items() if value is not None}

    @property
    def host_key_fingerprints(self) -> tuple[str, ...]:
        """Both host keys' fingerprints as ``SHA256:…``, ed25519 first."""
        files = [self.host_key_folder / f"ssh_host_{kind}_key" for kind in ("ed25519", "rsa")]
        argvs = [["ssh-keygen", "-lf", str(file)] for file in files]
        return tuple(
            subprocess.run(argv, check=True, capture_output=True, text=True).stdout.split()[1] for argv in argvs
        )

    def start(self) -> Self:
        """Start the entrypoint and wait until sshd greets; AssertionError with its log when it ends."""
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*self.wrapper, str(SERVER / "entrypoint.sh")],
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        try:
            wait_until(self._answers, 60, "sshd's greeting")
        except BaseException:
            self.stop()
            raise
        return self

    def _answers(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, f"the server ended:\n{self.log_text()}"
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=5) as connection:
                greeting = connection.recv(8)
                connection.sendall(b"SSH-2.0-test\r\n")
                return greeting == b"SSH-2.0-"
        except OSError:
            return False

    def stop(self) -> int:
        """End it with SIGTERM as ``docker stop`` does, then every session left; returns its exit code."""
        assert self.process is not None
        family = list(descendants(self.process.pid))
        self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(timeout=10)
        finally:
            if self.process.poll() is None:
                self.process.kill()
                self.process.wait()
            for pid in family:  # in a container they end with its process 1
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_exception: object) -> None:
        self.stop()

    def log_text(self) -> str:
        """What the server has logged until now."""
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def ssh(self, *options: str, identity: Path | None = None) -> list[str]:
        """The ssh command to it, whatever the host name that follows."""
        return [
            *("ssh", "-F", "none", "-o", "BatchMode=yes", "-o", "IdentitiesOnly=yes"),
            *("-o", "ConnectTimeout=10", "-o", f"HostName={self.host}"),
            *("-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-o", "LogLevel=ERROR"),
            *("-i", str(identity or self.identity), "-p", str(self.port), "-l", self.user, *options),
        ]

    def rsync(self, *words: str, identity: Path | None = None) -> list[str]:
        """An rsync command through it; any host name in ``words`` leads to it."""
        return ["rsync", "-e", shlex.join(self.ssh(identity=identity)), *words]


def _is_locked(account: str) -> bool:
    """Without PAM sshd lets nobody into an account whose password is locked, as root's often is."""
    for line in Path("/etc/shadow").read_text().splitlines():
        name, password, *_ = line.split(":")
        if name == account:
            return password.startswith("!")
    return False
