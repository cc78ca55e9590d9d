"""A site's key in a thief's hands: the real image, every way out of `rrsync -ro` that is known, and nothing gained.

All attempts go against one server, many at a time; then its volumes are compared with what they were, everything that
came back is searched for what was hidden around the library, and its log is read.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
import socket
import subprocess
import uuid
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from support import engine
from support.audit import audit
from support.engine import Pair, run
from support.server import free_port, make_key, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

SITE = "site-under-test"
SECONDS = 60
SESSIONS = 12
# What lies in files that the account of the sites could read or that would harm most
TELLTALE = [b"root:x:0:0", b"OPENSSH PRIVATE KEY", b"SSH_CONNECTION=", b"serve-library'", b"uid=31337"]
SENDER = "rsync --server --sender -re.iLsfxCIvu"


@dataclass
class Theft:
    """A running server, and what a thief has: its address and one key."""

    pair: Pair
    work: Path
    canary: str

    @property
    def identity(self) -> Path:
        return self.pair.client_data / "ssh/id_syncer"

    def ssh(self, *options: str, identity: Path | None = None, user: str = "syncer") -> list[str]:
        """The command ssh to it; the host is `host`."""
        return [
            *("ssh", "-F", "none", "-o", "BatchMode=yes", "-o", "IdentitiesOnly=yes", "-o", "LogLevel=ERROR"),
            *("-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-o", "ConnectTimeout=20"),
            *("-o", f"HostName={self.pair.address}", "-p", str(self.pair.ssh_port), "-l", user),
            *("-i", str(identity or self.identity), *options),
        ]

    def log(self) -> str:
        """`docker logs` of the server."""
        return self.pair.logs("server")

    def snapshot(self) -> dict[str, object]:
        """Everything that lies on the server's volumes and in the container's writable folders."""
        found: dict[str, object] = {}
        for path in sorted(self.pair.server_data.rglob("*")):
            status = path.lstat()
            content = b""
            if path.is_symlink():
                content = os.fsencode(os.readlink(path))
            elif path.is_file():
                content = hashlib.sha256(path.read_bytes()).digest()
            names = (
                status.st_mode,
                status.st_uid,
                status.st_gid,
                status.st_nlink,
                status.st_mtime_ns,
                status.st_ctime_ns,
            )
            found[str(path)] = names, content, os.listxattr(path, follow_symlinks=False)
        look = (
            "find",
            "/tmp",
            "/home",
            "/dev/shm",
            "/run",
            "-path",
            "/run/clr/sessions*",
            "-o",
            "-printf",
            "%p %y %s %T@\\n",
        )
        lines = self.pair.exec("server", *look).splitlines()
        found["container"] = sorted(line for line in lines if not line.startswith("/run/clr/log "))
        return found

    def clean(self, output: bytes) -> None:
        """AssertionError when something from outside of the library is in ``output``."""
        for telltale in [self.canary.encode(), *TELLTALE]:
            assert telltale not in output, output[:2000]


@pytest.fixture(scope="module")
def theft(images: None, compose: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Theft]:
    """The server, with a library full of links that lead out of it, and secrets all around."""
    folder = tmp_path_factory.mktemp("theft")
    (folder / "pair").mkdir()
    pair = Pair(folder / "pair", compose)
    theft = Theft(pair, folder, f"CANARY-{uuid.uuid4().hex}")
    library = pair.templates
    (library / "template").mkdir()
    (library / "template/disk.vmdk").write_bytes(b"disk")
    (library / "template" / theft.canary).write_bytes(b"named like the secret: filter rules read from it would hide it")
    links = {
        "canary": "/tmp/canary",
        "dots": "../../tmp/canary",
        "escape": "/tmp",
        "root": "/",
        "up": "../..",
        "passwd": "/etc/passwd",
        "keys": "/etc/ssh/keys",
        "hostkey": "/run/clr/ssh_host_ed25519_key",
        "authorized": "/run/clr/authorized_keys",
        "environment": "/proc/self/environ",
        "template/inner": "/tmp/canary",
    }
    for name, target in links.items():
        (library / name).symlink_to(target)
    os.mkfifo(library / "fifo")
    make_key(folder / "other", comment="the-other-site")
    (pair.server_data / "ssh/other.pub").write_bytes(
        (folder / "other.pub").read_bytes() + f"# {theft.canary}\n".encode()
    )
    override = json.loads((pair.folder / "override.server.yaml").read_text())
    override["services"]["clr-server"]["environment"] = {"SYNC_MAX_SESSIONS": str(SESSIONS)}
    (pair.folder / "override.server.yaml").write_text(json.dumps(override))
    try:
        pair.up("server")
        wait_until(lambda: "Server listening on :: port" in pair.logs("server"), 60, "the server")
        for place in ("/tmp/canary", "/dev/shm/canary", "/run/canary", "/tmp/secret/canary"):
            pair.exec("server", "sh", "-c", f"mkdir -p {Path(place).parent}; echo {theft.canary} >{place}")
        yield theft
    finally:
        pair.remove()


def try_all(
    attempts: Mapping[str, Sequence[str]], cwd: Path, environment: Mapping[str, str] | None = None
) -> dict[str, tuple[int, bytes]]:
    """Run commands side by side; exit codes (-1 for one that had to be ended) and both streams, by name."""

    def one(argv: Sequence[str]) -> tuple[int, bytes]:
        try:
            done = subprocess.run(
                argv, stdin=subprocess.DEVNULL, capture_output=True, timeout=SECONDS, check=False, cwd=cwd,
                env={**os.environ, **(environment or {})},
            )  # fmt: skip
        except subprocess.TimeoutExpired as error:
            return -1, (error.stdout or b"") + (error.stderr or b"")
        return done.returncode, done.stdout + done.stderr

    with ThreadPoolExecutor(6) as pool:
        return dict(zip(attempts, pool.map(one, attempts.values()), strict=True))


def received(folder: Path) -> bytes:
    """What files there hold, one after the other; links are not followed."""
    return b"\n".join(
        path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file() and not path.is_symlink()
    )


# What rrsync must refuse: it ends with 1, and the log quotes it
COMMANDS = [
    "",
    "/bin/sh -i",
    "id",
    "sh -c id",
    "rsync",
    "rsync --version",
    "RSYNC_RSH=id rsync --server --sender -re.iLsfxC . .",
    "env rsync --server --sender -re.iLsfxC . .",
    "/tmp/rsync --server --sender -re.iLsfxC . .",
    "rsync\t--server --sender -re.iLsfxC . .",
    "rsync\n--server --sender -re.iLsfxC . .",
    "scp -f /etc/passwd",
    "scp -t .",
    "/usr/lib/openssh/sftp-server",
    "internal-sftp",
    "rsync --daemon",
    "rsync --daemon --config=/tmp/canary",
    "rsync --server --daemon .",
    "rsync --server --daemon --config=/etc/passwd .",
    "rsync --server --sender --daemon .",
    "rsync --server --sender --config=/etc/passwd . .",
    "rsync --server -logDtpre.iLsfxC . .",
    "rsync --server -re.iLsfxC --sender . .",
    "rsync --server --sender -re.iLsfxC --no-sender . .",
    f"{SENDER} --remove-source-files . template",
    f"{SENDER} --remove-sent-files . template",
    f"{SENDER} --delete . .",
    f"{SENDER} --delete-excluded . .",
    f"{SENDER} --delete-missing-args . .",
    f"{SENDER} --log-file=/tmp/written . .",
    f"{SENDER} --log-file=written . .",
    f"{SENDER} --log-file written . .",
    "rsync --server --sender -rLe.iLsfxC . .",
    "rsync --server --sender -L -re.iLsfxC . .",
    "rsync --server --sender -rke.iLsfxC . .",
    "rsync --server --sender -rKe.iLsfxC . .",
    "rsync --server --sender -rse.iLsfxC . .",
    "rsync --server --sender -se.iLsfxC . .",
    f"{SENDER} --copy-links . .",
    f"{SENDER} --copy-dirlinks . .",
    f"{SENDER} --copy-unsafe-links . .",
    f"{SENDER} --keep-dirlinks . .",
    f"{SENDER} --no-munge-links . .",
    f"{SENDER} --copy-devices . .",
    f"{SENDER} --write-devices . .",
    f"{SENDER} --secluded-args . .",
    f"{SENDER} --protect-args . .",
    f"{SENDER} --old-args . .",
    f"{SENDER} --trust-sender . .",
    f"{SENDER} --debug=all . .",
    f"{SENDER} --rsh=/bin/sh . .",
    f"{SENDER} --rsync-path=/bin/sh . .",
    f"{SENDER} -e /bin/sh . .",
    "rsync --server --sender -e/bin/sh . .",
    f"{SENDER} --filter=merge_/tmp/canary . .",
    f"{SENDER} -f .,/tmp/canary . .",
    f"{SENDER} --exclude-from=/tmp/canary . .",
    f"{SENDER} --include-from=/tmp/canary . .",
    f"{SENDER} --early-input=/tmp/canary . .",
    f"{SENDER} --password-file=/tmp/canary . .",
    f"{SENDER} --read-batch=/tmp/canary . .",
    f"{SENDER} --write-batch=/tmp/written . .",
    f"{SENDER} --address=0.0.0.0 --port=1 . .",
    f"{SENDER} --chown=0:0 . .",
    f"{SENDER} --stop-at=now . .",
    f"{SENDER} --confine-root=/ . .",
    f"{SENDER} --files-from=../../tmp/canary . .",
    f"{SENDER} --files-from=canary . .",
    f"{SENDER} --files-from=escape/canary . .",
    f"{SENDER} --files-from=template/inner . .",
    f"{SENDER} --files-from canary . .",
    f"{SENDER} . ../..",
    f"{SENDER} . ../../tmp/canary",
    f"{SENDER} . template/../../../tmp/",
    f"{SENDER} . /../tmp/",
    f"{SENDER} . .\\./.\\./tmp/",
    f"{SENDER} . escape/",
    f"{SENDER} . escape/.",
    f"{SENDER} . escape/canary",
    f"{SENDER} . escape/secret/",
    f"{SENDER} . escape/*",
    f"{SENDER} . *scape/can*",
    f"{SENDER} . */canary",
    f"{SENDER} . canary/",
    f"{SENDER} . keys/",
    f"{SENDER} . keys/ssh_host_ed25519_key",
    f"{SENDER} . root/etc/passwd",
    f"{SENDER} . root/proc/self/environ",
    f"{SENDER} . root//proc/1/root/",
    f"{SENDER} . up/library/",
    "rsync --server --sender -rRe.iLsfxC . escape/canary",
    "rsync --server --sender -rRe.iLsfxC . escape/./canary",
    "rsync --server --sender -rRe.iLsfxC . ./escape/./",
]

# What rrsync hands on as names of files, which then are not there; the log has the exit code of rsync
NAMES = [
    "rsync --server --sender -re.iLsfxC . $(id)",
    "rsync --server --sender -re.iLsfxC . `id`",
    "rsync --server --sender -re.iLsfxC . . ; id",
    "rsync --server --sender -re.iLsfxC . nothing|id",
    "rsync --server --sender -re.iLsfxC . nothing&&id",
    "rsync --server --sender -re.iLsfxC . nothing\nid",
    "rsync --server --sender -re.iLsfxC . --daemon",
    "rsync --server --sender -re.iLsfxC . -- --rsh=id",
    "rsync --server --sender -re.iLsfxC . /etc/passwd",
    "rsync --server --sender -re.iLsfxC . /proc/self/environ",
    "rsync --server --sender -re.iLsfxC . ~/.ssh/other.pub",
    "rsync --server --sender -re.iLsfxC . {template,../../tmp}/canary",
]


def quoted(command: str) -> str:
    """A command as the log has it."""
    return re.sub(r"[^ -~]", "?", command).replace('"', "'")[:300]


def test_no_command_but_reading_with_rsync_does_anything(theft: Theft) -> None:
    before = theft.snapshot()
    attempts = {command: theft.ssh("host", *([command] if command else [])) for command in [*COMMANDS, *NAMES]}

    answers = try_all(attempts, theft.work)

    for command, (code, output) in answers.items():
        assert code > 0, (command, output)
        theft.clean(output)
    assert theft.snapshot() == before

    def unlogged() -> list[str]:
        session, log = rf"serve-library: site={SITE} address=\S+ session=\d+ refused exit=1 seconds=\d+", theft.log()
        session += r" sent=\d+ received=\d+ command"
        return [text for text in COMMANDS if not re.search(f'{session}="{re.escape(quoted(text))}"', log)]

    wait_until(lambda: not unlogged(), what="a line for every command that was refused")


# Options of a real rsync; -M hands one to the server, and @ stands for the folder that the outcome goes to
HARMLESS = [
    ["-rl", "host:", "@/out"],
    ["-rlptgoD", "host:.", "@/out"],
    ["-rlHAX", "--numeric-ids", "host:", "@/out"],
    ["-rl", "-M--fake-super", "-X", "host:", "@/out"],
    ["-rl", "-M--munge-links", "host:", "@/out"],
    ["-rl", "--safe-links", "host:", "@/out"],
    ["-rl", "--iconv=utf-8,iso-8859-1", "host:", "@/out"],
    ["-rl", "--checksum-choice=none", "host:", "@/out"],
    ["-rl", "--usermap=*:0", "--groupmap=*:0", "host:", "@/out"],
    ["-rl", "--chown=root:root", "host:", "@/out"],
    ["-rl", "--max-alloc=0", "-M--max-alloc=0", "host:", "@/out"],
    ["-rl", "-M--max-alloc=9999999G", "host:", "@/out"],
    ["-rl", "-M--stderr=all", "host:", "@/out"],
    ["-rl", "-M--msgs2stderr", "host:", "@/out"],
    ["-rl", "-M--log-format=%o %h %l %L %n %P %a %u", "host:", "@/out"],
    ["-rl", "-M--info=all9", "host:", "@/out"],
    ["-rl", "-M--temp-dir=/tmp", "host:", "@/out"],
    ["-rl", "-M--partial-dir=/tmp", "-M--delay-updates", "host:", "@/out"],
    ["-rl", "-M-b", "-M--backup-dir=/tmp", "host:", "@/out"],
    ["-rl", "-M--compare-dest=/tmp", "host:", "@/out"],
    ["-rl", "-M--copy-dest=/etc", "host:", "@/out"],
    ["-rl", "-M--link-dest=/etc/ssh/keys", "host:", "@/out"],
    ["-rl", "--write-devices", "host:", "@/out"],
    ["-rl", "--compare-dest=/tmp", "host:", "@/out"],
    ["-rl", "--copy-dest=/tmp", "host:", "@/out"],
    ["-rl", "--link-dest=/tmp", "host:", "@/out"],
    ["-rl", "--filter=dir-merge /../../tmp/canary", "host:", "@/out"],
    ["-rl", "--filter=dir-merge,- /canary", "host:", "@/out"],
    ["-rl", "--filter=dir-merge,-n /canary", "host:", "@/out"],
    ["-rl", "--filter=dir-merge,- canary", "host:", "@/out"],
    ["-rl", "--filter=dir-merge,- inner", "host:", "@/out"],
    ["-rl", "--filter=dir-merge,- ../../../tmp/canary", "host:", "@/out"],
    ["-rl", "--filter=dir-merge,- /tmp/canary", "host:", "@/out"],
    ["-rl", "--filter=dir-merge,- /escape/canary", "host:", "@/out"],
    ["-rl", "--filter=dir-merge,- /root/tmp/canary", "host:", "@/out"],
    ["-rl", "--filter=dir-merge,-w /root/tmp/canary", "host:", "@/out"],
    ["-rl", "--filter=:- /authorized", "host:", "@/out"],
]
USELESS = [
    ["-rl", "-M--suffix=/../../tmp/x", "host:", "@/out"],
    ["-rl", "-M--only-write-batch=/tmp/written", "host:", "@/out"],
    ["-rl", "-M--write-devices", "host:", "@/out"],
    ["-rL", "host:", "@/out"],
    ["-rl", "-M-L", "host:", "@/out"],
    ["-rk", "host:", "@/out"],
    ["-rl", "-M--copy-links", "host:", "@/out"],
    ["-r", "--copy-unsafe-links", "host:", "@/out"],
    ["-r", "--copy-devices", "host:", "@/out"],
    ["-rs", "host:../../tmp/canary", "@/out"],
    ["-r", "--secluded-args", "--files-from=:/tmp/canary", "host:", "@/out"],
    ["-r", "--files-from=:/canary", "host:", "@/out"],
    ["-r", "--files-from=:canary", "host:", "@/out"],
    ["-r", "--files-from=:/escape/canary", "host:", "@/out"],
    ["-r", "--files-from=:template/inner", "host:", "@/out"],
    ["-r", "--files-from=:/tmp/canary", "host:", "@/out"],
    ["-r", "--files-from=:/../../tmp/canary", "host:", "@/out"],
    ["-r", "--files-from=list", "host:", "@/out"],
    ["-rL", "--files-from=list", "host:", "@/out"],
    ["-r", "--no-relative", "--files-from=list", "host:", "@/out"],
    ["-r", "--no-implied-dirs", "--files-from=list", "host:", "@/out"],
    ["-r", "--files-from=list", "host:/escape/", "@/out"],
    ["-r", "--old-args", "host:$(cat /tmp/canary)", "@/out"],
    ["-r", "--old-args", "host:nothing; cat /tmp/canary", "@/out"],
    ["-r", "--old-args", "host:`cat /tmp/canary`", "@/out"],
    ["-r", "--old-args", "host:nothing\ncat /tmp/canary", "@/out"],
    ["-r", "--old-args", "host:escape/*", "@/out"],
    ["-r", "--old-args", "host:. --log-file=/tmp/written", "@/out"],
    ["-r", "--rsync-path=cat /tmp/canary; rsync", "host:", "@/out"],
    ["-r", "--rsync-path=/tmp/canary", "host:", "@/out"],
    ["-r", "host:../../tmp/", "@/out"],
    ["-r", "host:/../../tmp/", "@/out"],
    ["-r", "host:template/../../../tmp/", "@/out"],
    ["-r", "host:/tmp/canary", "@/out"],
    ["-r", "host:/etc/passwd", "@/out"],
    ["-r", "host:/proc/self/environ", "@/out"],
    ["-r", "host:escape/", "@/out"],
    ["-r", "host:escape/canary", "@/out"],
    ["-r", "host:canary/", "@/out"],
    ["-r", "host:root/tmp/canary", "@/out"],
    ["-r", "host:keys/ssh_host_ed25519_key", "@/out"],
    ["-rR", "host:escape/canary", "@/out"],
    ["-rR", "host:./escape/./canary", "@/out"],
    ["-rR", "host:template/./../escape/canary", "@/out"],
    ["-rb", "--backup-dir=/tmp/written", "template/", "host:"],
    ["-r", "template/", "host:"],
    ["-r", "template/", "host:template/"],
    ["-r", "--inplace", "template/", "host:template/"],
    ["-r", "--append", "template/", "host:template/"],
    ["-r", "--delete", "empty/", "host:"],
    ["-r", "--existing", "--ignore-existing", "--delete", "empty/", "host:"],
    ["-r", "--mkpath", "template/", "host:new/deep/"],
    ["-r", "--link-dest=/tmp", "template/", "host:"],
    ["-r", "--temp-dir=/tmp", "template/", "host:"],
    ["-r", "--partial-dir=/tmp/written", "template/", "host:"],
    ["-r", "--write-batch=batch", "template/", "host:"],
    ["-r", "-M--log-file=/tmp/written", "host:", "@/out"],
    ["-r", "-M--log-file=written", "host:", "@/out"],
    ["-r", "--remove-source-files", "host:template/disk.vmdk", "@/out"],
    ["-r", "--delete-missing-args", "host:nothing", "@/out"],
    ["-r", "-M--daemon", "host:", "@/out"],
    ["-r", "-M--config=/tmp/canary", "host:", "@/out"],
    ["-r", "host::module", "@/out"],
    ["-r", "--early-input=/etc/hostname", "host::module", "@/out"],
    ["-r", "-M-e/bin/sh", "host:", "@/out"],
]


def ends(theft: Theft) -> list[str]:
    """The lines of the log with which the site's sessions ended."""
    return re.findall(rf"serve-library: site={SITE} \S+ \S+ ((?:end|refused) .*)", theft.log())


def by_rsync(theft: Theft, words: Sequence[str], folder: Path) -> list[str]:
    """An rsync with ``words`` whose outcome goes to ``folder``."""
    folder.mkdir(parents=True)
    return ["rsync", "-e", shlex.join(theft.ssh()), *(word.replace("@", str(folder)) for word in words)]


@pytest.mark.parametrize("attempts", [HARMLESS, USELESS], ids=["harmless", "useless"])
def test_no_option_of_rsync_reads_outside_of_the_library_or_writes(theft: Theft, attempts: list[list[str]]) -> None:
    work = theft.work / uuid.uuid4().hex
    for path in ("template", "empty"):
        (work / path).mkdir(parents=True)
    (work / "template/disk.vmdk").write_bytes(b"evil")
    wanted = ["escape/canary", "canary/", "../../tmp/canary", "/../../tmp/canary", "/tmp/canary", "/etc/passwd"]
    wanted += ["root/tmp/canary", "root/proc/self/environ", "keys/ssh_host_ed25519_key", "template/../../../tmp/canary"]
    (work / "list").write_text("\n".join(wanted))
    before, logged = theft.snapshot(), len(ends(theft))
    folders = {shlex.join(words): work / str(number) for number, words in enumerate(attempts)}
    argvs = [by_rsync(theft, words, folder) for words, folder in zip(attempts, folders.values(), strict=True)]

    answers = try_all(dict(zip(folders, argvs, strict=True)), work)

    assert theft.snapshot() == before
    for name, folder in folders.items():
        code, output = answers[name]
        theft.clean(output.replace(f"template/{theft.canary}".encode(), b""))
        theft.clean(received(folder))
        if attempts is HARMLESS:
            # What is not refused is the library; a filter that was read from outside would have hidden a file.
            assert (folder / "out/template/disk.vmdk").read_bytes() == b"disk", (name, code, output)
            assert (folder / "out/template" / theft.canary).exists(), (name, code, output)
        else:
            assert code > 0, (name, output)
    # rrsync refused it, or rsync did not find what was named
    wait_until(lambda: len(ends(theft)) >= logged + len(attempts), what="a line for every attempt")
    if attempts is USELESS:
        assert not [line for line in ends(theft)[logged:] if " end exit=0 " in line]


# What sshd itself refuses, by what the log calls it; the thief's ssh has an agent, a display and an X server
REQUESTS = {
    "pty-req": ["-tt", "host"],
    "auth-agent-req@openssh.com": ["-A", "host", "id"],
    "x11-req": ["-X", "host", "id"],
    "env request LD_PRELOAD": ["-o", "SetEnv=LD_PRELOAD=/tmp/x", "host", "id"],
    "env request PATH": ["-o", "SetEnv=PATH=/tmp", "host", "id"],
    "env request RSYNC_OLD_ARGS": ["-o", "SetEnv=RSYNC_OLD_ARGS=1", "host", "id"],
    "local port forward: originator 127.0.0.1 port 65535, target 127.0.0.1 port 22": ["-W", "127.0.0.1:22", "host"],
    "tcpip-forward": ["-N", "-o", "ExitOnForwardFailure=yes", "-R", "0.0.0.0:9:127.0.0.1:9", "host"],
    "streamlocal-forward@openssh.com": ["-N", "-o", "ExitOnForwardFailure=yes", "-R", "/tmp/s:127.0.0.1:9", "host"],
    "tun@openssh.com": ["-N", "-o", "ExitOnForwardFailure=yes", "-w", "any:any", "host"],
    "subsystem request for sftp": ["-s", "host", "sftp"],
    "subsystem request for x?2026-01-01T00:00:00+0000 serve-library: site=forged": [
        *("-s", "host", "x\n2026-01-01T00:00:00+0000 serve-library: site=forged\x1b[31m\x07")
    ],
}


def test_sshd_gives_nothing_but_the_one_command_and_says_who_asked(theft: Theft) -> None:
    before = theft.snapshot()
    agent = subprocess.Popen(["ssh-agent", "-D", "-a", str(theft.work / "agent")], stdout=subprocess.DEVNULL)
    try:
        wait_until((theft.work / "agent").exists)
        environment = {"SSH_AUTH_SOCK": str(theft.work / "agent"), "DISPLAY": ":99"}
        answers = try_all({what: theft.ssh(*words) for what, words in REQUESTS.items()}, theft.work, environment)
    finally:
        agent.terminate()
        agent.wait()

    for what, (code, output) in answers.items():
        assert code > 0, (what, output)
        theft.clean(output)
        line = f"sshd: site={SITE} address="
        wait_until(
            lambda what=what, line=line: re.search(f'{line}\\S+ refused request="{re.escape(what)}', theft.log())
        )
    assert theft.snapshot() == before


def test_ports_and_sockets_that_the_thief_forwards_lead_nowhere(theft: Theft) -> None:
    port, proxy = free_port(), free_port()
    local = theft.work / "forwarded"
    forwards = [
        "-L",
        f"127.0.0.1:{port}:127.0.0.1:22",
        "-L",
        f"{local}:/run/clr/log.socket",
        "-D",
        f"127.0.0.1:{proxy}",
    ]
    ssh = subprocess.Popen([*theft.ssh("-N", *forwards), "host"], stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_until(local.exists, 30, "the forwarded socket")
        with socket.create_connection(("127.0.0.1", port), timeout=20) as plain:
            assert plain.recv(1) == b""
        with socket.socket(socket.AF_UNIX) as unix:
            unix.settimeout(20)
            unix.connect(str(local))
            assert unix.recv(1) == b""
        with socket.create_connection(("127.0.0.1", proxy), timeout=20) as socks:
            socks.sendall(b"\x05\x01\x00" + b"\x05\x01\x00\x01\x7f\0\0\x01\x00\x16")
            assert not socks.recv(64)[2:].startswith(b"\x05\x00")
    finally:
        ssh.terminate()
        ssh.wait()
    for what in ("local port forward: .* target 127.0.0.1 port 22", "streamlocal port forward: .*/run/clr/log.socket"):
        wait_until(lambda what=what: re.search(f'site={SITE} .*refused request="{what}', theft.log()), what=what)


def test_a_second_command_of_one_connection_is_the_forced_one_too(theft: Theft) -> None:
    control = ("-o", f"ControlPath={theft.work}/control")
    master = subprocess.Popen([*theft.ssh("-M", "-N", *control), "host"], stdin=subprocess.DEVNULL)
    try:
        wait_until((theft.work / "control").exists, 30, "the connection")
        for command in ("id", "cat /tmp/canary"):
            done = subprocess.run([*theft.ssh(*control), "host", command], capture_output=True, timeout=60, check=False)
            assert done.returncode == 1
            theft.clean(done.stdout + done.stderr)
            line = rf'refused exit=1 seconds=\d+ sent=\d+ received=\d+ command="{command}"'
            wait_until(lambda line=line: re.search(line, theft.log()), what=line)
    finally:
        master.terminate()
        master.wait()


@pytest.mark.parametrize("protocol", ["-O", "-s"])
def test_scp_and_sftp_bring_nothing_and_take_nothing(theft: Theft, tmp_path: Path, protocol: str) -> None:
    before = theft.snapshot()
    (tmp_path / "evil").write_bytes(b"evil")
    ssh = theft.ssh()
    options = [word for word in ssh[1:] if word not in ("-p", str(theft.pair.ssh_port), "-l", "syncer")]
    scp = ["scp", *options, "-P", str(theft.pair.ssh_port), "-o", "User=syncer", protocol]
    attempts = {
        "down": [*scp, "host:template/disk.vmdk", "got"],
        "away": [*scp, "host:/etc/passwd", "got"],
        "up": [*scp, "evil", "host:"],
    }
    for name, (code, output) in try_all(attempts, tmp_path).items():
        assert code > 0, name
        theft.clean(output)
    assert not (tmp_path / "got").exists()
    assert theft.snapshot() == before


def test_nobody_else_is_let_in(theft: Theft) -> None:
    ecdsa = make_key(theft.work / "ecdsa", "-t", "ecdsa")
    stranger = make_key(theft.work / "stranger")
    attempts = {f"as {user}": [*theft.ssh(user=user), "host", "true"] for user in ("root", "sshd", "nobody", "nosuch")}
    attempts["by a password"] = [*theft.ssh("-o", "PubkeyAuthentication=no"), "host", "true"]
    attempts["by the host"] = [
        *theft.ssh("-o", "PreferredAuthentications=hostbased,keyboard-interactive"),
        "host",
        "true",
    ]
    attempts["by an ECDSA key"] = [*theft.ssh(identity=ecdsa), "host", "true"]
    attempts["by another key"] = [*theft.ssh(identity=stranger), "host", "true"]

    for name, (code, output) in try_all(attempts, theft.work).items():
        assert code == 255, name
        assert b"Permission denied (publickey)" in output, name
    fingerprint = run("ssh-keygen", "-lf", stranger).stdout.split()[1]
    wait_until(lambda: fingerprint in theft.log(), what="the stranger's key in the log")


def test_ssh_audit_finds_nothing_outside_of_its_hardened_policy(theft: Theft) -> None:
    with socket.create_connection((theft.pair.address, theft.pair.ssh_port), timeout=20) as connection:
        banner = connection.recv(255).decode("ascii")
    assert audit(theft.pair.address, theft.pair.ssh_port, banner, theft.work) == ""


DSA = "ssh-dss AAAAB3NzaC1kc3MAAACBAIhnJZ8GpnBhbmvJKvCMpTnDUWvBEvPPcOoeXqF7e+rGfKLOqBJcfHnRN4w8VjDpTxdVDXJQ7yQYH a@b\n"


def test_key_files_that_are_wrong_are_named_and_usable_ones_used(theft: Theft) -> None:
    folder = theft.pair.server_data / "ssh"
    windows, cut = (make_key(theft.work / name, comment=name) for name in ("windows", "cut"))
    contents = {
        "dsa": (DSA.encode(), "NOT accepted: DSA keys are no longer safe"),
        "empty": (b"", "NOT accepted: there is no key in it"),
        "windows": (windows.with_suffix(".pub").read_bytes().replace(b"\n", b"\r\n"), "accepted for site windows"),
        "cut": (cut.with_suffix(".pub").read_bytes().rstrip(b"\n"), "accepted for site cut"),
    }
    for name, (content, _) in contents.items():
        (folder / f"{name}.pub").write_bytes(content)
    for name, (_, line) in contents.items():
        wait_until(lambda name=name, line=line: f"key {name}.pub: {line}" in theft.log(), 30, f"{name}: {line}")
    for identity in (windows, cut):
        assert run(*theft.ssh(identity=identity), "host", "true").returncode == 0
    for name in contents:
        (folder / f"{name}.pub").unlink()

    def shut_out() -> bool:
        return run(*theft.ssh(identity=cut), "host", "true", check=False).returncode == 255

    wait_until(shut_out, 30, "the key whose file is gone to be shut out")


def test_a_key_that_takes_all_it_can_get_does_not_keep_another_site_out(theft: Theft) -> None:
    with ExitStack() as stack:
        for _session in range(SESSIONS):
            argv = [*theft.ssh(), "host", "rsync --server --sender -re.iLsfxC . ."]
            held = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            stack.callback(held.communicate)
            stack.callback(held.kill)
        wait_until(
            lambda: theft.pair.exec("server", "sh", "-c", "pgrep -c rrsync || true").strip() == str(SESSIONS), 60
        )
        for _silent in range(SESSIONS):
            stack.enter_context(socket.create_connection((theft.pair.address, theft.pair.ssh_port), timeout=20))

        assert run(*theft.ssh(), "host", "true", check=False).returncode == 255
        network = ("--network", theft.pair.name("server"), "-v", f"{theft.work}/other:/key:ro")
        ssh = ("ssh", "-i", "/key", "-o", "StrictHostKeyChecking=no", "-l", "syncer", theft.pair.name("server"), "true")
        run("docker", "run", "--rm", *network, "--entrypoint", ssh[0], engine.IMAGE.format(role="client"), *ssh[1:])
        theft.pair.wait_healthy("server")
