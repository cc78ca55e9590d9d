"""A site's key reads the library and can do nothing else; what it tries is logged."""

from __future__ import annotations

import os
import re
import socket
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from support.server import Server, descendants, free_port, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

SECRET = b"TOP-SECRET-CONTENT"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    base = tmp_path_factory.mktemp("lockdown")
    library = base / "library"
    (library / "template").mkdir(parents=True)
    (library / "template" / "disk.vmdk").write_bytes(b"disk")
    (base / "outside").mkdir()
    (base / "outside" / "secret.txt").write_bytes(SECRET)
    (library / "escape").symlink_to("../outside")
    (library / "escape.txt").symlink_to("../outside/secret.txt")
    (library / "absolute.txt").symlink_to(base / "outside" / "secret.txt")
    with Server(library, base / "s") as running:
        yield running


def run(argv: list[str], seconds: float = 30, cwd: Path | None = None) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(argv, capture_output=True, timeout=seconds, check=False, stdin=subprocess.DEVNULL, cwd=cwd)


def closing_line(server: Server, seen: str) -> str:
    """Return the line that ends the session begun after ``seen`` was logged."""
    pattern = re.compile(r"serve-library: .* (?:refused|end|failed) exit=.*")
    return wait_until(
        lambda: next(iter(pattern.findall(server.log_text()[len(seen) :])), ""), what="the session's last line"
    )


def test_the_library_can_be_read(server: Server, tmp_path: Path) -> None:
    for source in ("host:", "host:.", "host:template", "host:/template"):
        seen = server.log_text()
        answer = run(server.rsync("-r", "--no-links", source, str(tmp_path / "out")))
        assert answer.returncode == 0, (source, answer.stderr)
        assert " end exit=0 " in closing_line(server, seen)
    assert (tmp_path / "out" / "template" / "disk.vmdk").read_bytes() == b"disk"
    assert (tmp_path / "out" / "disk.vmdk").exists() is False


COMMANDS = {
    "a shell": "",
    "a named shell": "/bin/sh -i",
    "a program": "id",
    "old scp, reading": "scp -f /etc/passwd",
    "old scp, writing": "scp -t .",
    "sftp as a program": "/usr/lib/openssh/sftp-server",
    "an rsync daemon": "rsync --daemon",
    "an rsync daemon behind the server option": "rsync --server --daemon .",
    "a daemon that sends": "rsync --server --sender --daemon .",
    "a configured daemon": "rsync --server --sender --config=/etc/passwd . .",
    "writing": "rsync --server -logDtpre.iLsfxC . .",
    "removing": "rsync --server --sender -re.iLsfxC --remove-source-files . template",
    "following links": "rsync --server --sender -rLe.iLsfxC . .",
    "following folder links": "rsync --server --sender -rke.iLsfxC . .",
    "following unsafe links": "rsync --server --sender -re.iLsfxC --copy-unsafe-links . .",
    "reading devices": "rsync --server --sender -re.iLsfxC --copy-devices . .",
    "a log file": "rsync --server --sender -re.iLsfxC --log-file=/tmp/clr-lockdown . .",
    "a list from outside": "rsync --server --sender -re.iLsfxC --files-from=../outside/secret.txt . .",
    "secluded arguments": "rsync --server --sender -se.iLsfxC . .",
    "two dots": "rsync --server --sender -re.iLsfxC . ../outside/",
    "two dots inside": "rsync --server --sender -re.iLsfxC . template/../../outside/",
    "a link that leads outside": "rsync --server --sender -re.iLsfxC . escape/",
    "a file behind that link": "rsync --server --sender -re.iLsfxC . escape/secret.txt",
    "a second command": "rsync --server --sender -re.iLsfxC . . ; id",
    "a command in quotes": "rsync --server --sender -re.iLsfxC . $(id)",
    "a command in backquotes": "rsync --server --sender -re.iLsfxC . `id`",
    "another program before rsync": "env rsync --server --sender -re.iLsfxC . .",
    "another folder's rsync": "/tmp/rsync --server --sender -re.iLsfxC . .",
}


@pytest.mark.parametrize("attempt", COMMANDS)
def test_a_command_other_than_reading_with_rsync_is_refused_and_logged(attempt: str, server: Server) -> None:
    seen = server.log_text()
    command = COMMANDS[attempt]
    answer = run([*server.ssh("host"), *([command] if command else [])])
    assert answer.returncode != 0
    assert b"uid=" not in answer.stdout + answer.stderr
    assert SECRET not in answer.stdout + answer.stderr
    line = closing_line(server, seen)
    assert " exit=0 " not in line
    # What rrsync lets through to rsync, which then finds no such file, ends with another code than a refusal.
    assert " refused exit=1 " in line or " end exit=12 " in line or " end exit=23 " in line
    if " refused " in line:
        assert f'command="{command}"' in line


@pytest.mark.parametrize(
    "words",
    [
        ["-r", "host:../outside/", "OUT"],
        ["-r", "host:/../outside/", "OUT"],
        ["-r", "host:template/../../outside/", "OUT"],
        ["-r", "host:OUTSIDE", "OUT"],
        ["-r", "host:/etc/passwd", "OUT"],
        ["-r", "host:escape/", "OUT"],
        ["-r", "host:escape/secret.txt", "OUT"],
        ["-rR", "host:escape/secret.txt", "OUT"],
        ["-rL", "host:", "OUT"],
        ["-rk", "host:", "OUT"],
        ["-r", "--files-from=LIST", "host:", "OUT"],
        ["-r", "--no-implied-dirs", "--files-from=LIST", "host:", "OUT"],
        ["-r", "--files-from=:/escape/secret.txt", "host:", "OUT"],
        ["-r", "--filter=dir-merge /escape/secret.txt", "host:", "OUT"],
        ["-r", "--rsync-path=cat ../outside/secret.txt; rsync", "host:", "OUT"],
        ["-rlptgoD", "host:", "OUT"],
    ],
    ids=" ".join,
)
def test_nothing_outside_of_the_library_comes_over(words: list[str], server: Server, tmp_path: Path) -> None:
    seen = server.log_text()
    (tmp_path / "list").write_text("escape/secret.txt\nescape.txt\nabsolute.txt\n../outside/secret.txt\n/etc/passwd\n")
    outside = server.library.parent / "outside"
    words = [
        word.replace("OUTSIDE", str(outside))
        .replace("LIST", str(tmp_path / "list"))
        .replace("OUT", str(tmp_path / "out"))
        for word in words
    ]
    answer = run(server.rsync(*words))
    assert SECRET not in answer.stdout + answer.stderr
    assert b"root:" not in answer.stdout + answer.stderr
    for path in tmp_path.rglob("*"):
        if path.is_file() and not path.is_symlink():
            assert path.read_bytes() in (b"disk", (tmp_path / "list").read_bytes()), path
    assert closing_line(server, seen)


@pytest.mark.parametrize(
    "words",
    [
        ["-r", "SOURCE/", "host:"],
        ["-r", "--delete", "SOURCE/", "host:"],
        ["-r", "--inplace", "SOURCE/", "host:template"],
        ["-r", "--remove-source-files", "host:template", "OUT"],
        ["-r", "--write-batch=BATCH", "SOURCE/", "host:"],
    ],
    ids=" ".join,
)
def test_the_library_cannot_be_changed(words: list[str], server: Server, tmp_path: Path) -> None:
    seen = server.log_text()
    (tmp_path / "source" / "template").mkdir(parents=True)
    (tmp_path / "source" / "template" / "disk.vmdk").write_bytes(b"evil")
    (tmp_path / "source" / "new").write_bytes(b"evil")
    before = sorted(server.library.rglob("*"))
    words = [
        word.replace("SOURCE", str(tmp_path / "source"))
        .replace("OUT", str(tmp_path / "out"))
        .replace("BATCH", str(tmp_path / "b"))
        for word in words
    ]
    assert run(server.rsync(*words)).returncode != 0
    assert sorted(server.library.rglob("*")) == before
    assert (server.library / "template" / "disk.vmdk").read_bytes() == b"disk"
    assert " refused exit=1 " in closing_line(server, seen)


def scp(server: Server, *words: str) -> list[str]:
    ssh = server.ssh()
    port = ssh.index("-p")
    options = [*ssh[1:port], *ssh[port + 4 :]]
    return ["scp", *options, "-P", str(server.port), "-o", f"User={server.user}", *words]


@pytest.mark.parametrize("protocol", ["-O", "-s"])
def test_scp_and_sftp_get_nothing_and_put_nothing(protocol: str, server: Server, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"evil")
    for words in (["host:template/disk.vmdk", str(tmp_path / "out")], [str(tmp_path / "file"), "host:"]):
        assert run(scp(server, protocol, *words)).returncode != 0
    assert not (tmp_path / "out").exists()
    assert not (server.library / "file").exists()


class Held:
    """A session that stays open, because its rsync waits for a client that never speaks."""

    def __init__(self, server: Server, *options: str, environment: dict[str, str] | None = None) -> None:
        self.server = server
        self.argv = [*server.ssh(*options), "host", "rsync --server --sender -re.iLsfxC . ."]
        self.environment = os.environ | (environment or {})

    def __enter__(self) -> Held:
        seen = self.server.log_text()
        self.process = subprocess.Popen(
            self.argv,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=self.environment,
        )
        try:
            wait_until(lambda: " start" in self.server.log_text()[len(seen) :], what="the session's start")
            self.rsync = wait_until(self._rsync, what="the server's rsync")
        except AssertionError:
            self.process.kill()
            self.process.communicate()
            raise
        return self

    def _rsync(self) -> int:
        assert self.server.process is not None
        for pid in descendants(self.server.process.pid):
            try:
                if Path(f"/proc/{pid}/exe").resolve().name == "rsync":
                    return pid
            except FileNotFoundError:
                continue
        return 0

    def __exit__(self, *_exception: object) -> None:
        self.process.kill()
        self.process.communicate()
        wait_until(lambda: not Path(f"/proc/{self.rsync}").exists(), what="the end of the server's rsync")


def echo_server() -> socket.socket:
    listener = socket.create_server(("127.0.0.1", 0))
    listener.settimeout(2)
    return listener


def test_no_port_is_forwarded_to_the_servers_network(server: Server) -> None:
    port = free_port()
    with echo_server() as target:
        forward = f"127.0.0.1:{port}:127.0.0.1:{target.getsockname()[1]}"
        with Held(server, "-L", forward), socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
            assert connection.recv(1) == b""
        with pytest.raises(TimeoutError):
            target.accept()


def test_no_proxy_is_offered(server: Server) -> None:
    port = free_port()
    with echo_server() as target:
        proxy = Held(server, "-D", f"127.0.0.1:{port}")
        with proxy, socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
            connection.sendall(b"\x05\x01\x00")
            assert connection.recv(2) == b"\x05\x00"
            address = b"\x7f\0\0\x01" + target.getsockname()[1].to_bytes(2, "big")
            connection.sendall(b"\x05\x01\x00\x01" + address)
            assert not connection.recv(10).startswith(b"\x05\x00")
        with pytest.raises(TimeoutError):
            target.accept()


def test_no_port_is_opened_on_the_server(server: Server) -> None:
    port = free_port()
    answer = run([*server.ssh("-o", "ExitOnForwardFailure=yes", "-R", f"127.0.0.1:{port}:127.0.0.1:1"), "host", "true"])
    assert answer.returncode == 255
    assert b"remote port forwarding failed" in answer.stderr


def test_no_connection_is_tunnelled_through_standard_input(server: Server) -> None:
    with echo_server() as target:
        answer = run([*server.ssh("-W", f"127.0.0.1:{target.getsockname()[1]}"), "host"])
        assert answer.returncode == 255
        assert b"stdio forwarding failed" in answer.stderr
        with pytest.raises(TimeoutError):
            target.accept()


def test_no_agent_display_or_variable_reaches_the_session(server: Server, tmp_path: Path) -> None:
    agent = subprocess.Popen(["ssh-agent", "-D", "-a", str(tmp_path / "agent")], stdout=subprocess.DEVNULL)
    try:
        wait_until((tmp_path / "agent").exists)
        environment = {"SSH_AUTH_SOCK": str(tmp_path / "agent"), "DISPLAY": ":99", "LD_PRELOAD_X": "1", "LC_ALL": "C"}
        options = ("-A", "-X", "-o", "SendEnv=LC_ALL LD_PRELOAD_X")
        with Held(server, *options, environment=environment) as held:
            names = {
                variable.split(b"=")[0] for variable in Path(f"/proc/{held.rsync}/environ").read_bytes().split(b"\0")
            }
            assert b"SSH_CONNECTION" in names
            assert not names & {b"SSH_AUTH_SOCK", b"DISPLAY", b"LD_PRELOAD_X", b"LC_ALL"}
    finally:
        agent.terminate()
        agent.wait()


def test_no_terminal_is_given(server: Server) -> None:
    answer = run([*server.ssh("-tt"), "host", "rsync --server --sender -re.iLsfxC . ."])
    assert answer.returncode != 0
    assert b"PTY allocation request failed" in answer.stderr


def test_no_other_account_password_or_subsystem_is_let_in(server: Server) -> None:
    for options in (["-l", "daemon"], ["-o", "PubkeyAuthentication=no"]):
        ssh = [word for word in server.ssh() if options[0] != "-l" or word not in ("-l", server.user)]
        answer = run([ssh[0], *options, *ssh[1:], "host", "true"])
        assert answer.returncode == 255
        assert b"Permission denied (publickey)." in answer.stderr
    assert run([*server.ssh("-s"), "host", "sftp"]).returncode != 0
