"""Both roles as containers: built from their Dockerfiles, started with the two compose files by a real Compose.

What the compose files promise is what is tested, so a test's copies differ from them only in the ports that are
published; a second file next to each gives names of its own and what the scenario sets.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import urllib.request
import uuid
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from support.server import free_port, make_key, wait_until

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

ROOT = Path(__file__).resolve().parents[2]
SUPPORT = Path(__file__).resolve().parent
ROLES = ("server", "client")
IMAGE = "clr-e2e-{role}"
LABEL = "org.content-library-rsync.test"
START_SECONDS = 120.0


def run(*argv: str | Path, check: bool = True, timeout: float = 600.0) -> subprocess.CompletedProcess[str]:
    """Run a program to its end; CalledProcessError carries its output as a note."""
    done = subprocess.run(
        [str(word) for word in argv], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout
    )
    if check and done.returncode:
        error = subprocess.CalledProcessError(done.returncode, done.args, done.stdout, done.stderr)
        error.add_note(f"{done.stdout[-4000:]}\n{done.stderr[-4000:]}")
        raise error
    return done


def docker(*words: str | Path, check: bool = True) -> str:
    """Run docker; return what it printed, both streams."""
    done = run("docker", *words, check=check)
    return done.stdout + done.stderr


def engine_answers() -> bool:
    """Tell whether a container engine can be used from here."""
    try:
        return run("docker", "version", check=False, timeout=30).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


def compose_v1() -> str | None:
    """Return the path of Docker Compose 1.29, None where there is none."""
    path = shutil.which("docker-compose")
    version = run(path, "version", "--short", check=False).stdout if path else ""
    return path if version.startswith("1.") else None


def compose_v2() -> str:
    """Return the path of a Docker Compose v2, brought from Debian where none is installed."""
    return run(SUPPORT / "engine.sh", "compose2").stdout.strip()


@cache
def host_address() -> str:
    """The address of this host that containers reach it by, as host.docker.internal."""
    name = "host.docker.internal"
    look = ("--add-host", f"{name}:host-gateway", "--entrypoint", "getent", IMAGE.format(role="client"))
    return run("docker", "run", "--rm", *look, "hosts", name).stdout.split()[0]


@dataclass
class Pair:
    """A server and a client on this host, with their data below ``folder``.

    ``environment`` is what the client's settings add to those of the compose file, ``service`` further keys of its
    service, such as ``user``.
    """

    folder: Path
    compose: str
    environment: Mapping[str, str] = field(default_factory=dict)
    service: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.id = uuid.uuid4().hex[:8]
        self.ssh_port, self.http_port, self.https_port = free_port(), free_port(), free_port()
        self.address = host_address()
        self.server_data = self.folder / "server/data"
        self.client_data = self.folder / "client/data"
        for data in ("ssh", "library", "hostkeys"):
            (self.server_data / data).mkdir(parents=True)
        for data in ("ssh", "library", "certs", "caddy"):
            (self.client_data / data).mkdir(parents=True)
        self.templates = self.server_data / "library"
        self.library = self.client_data / "library"
        key = make_key(self.client_data / "ssh/id_syncer", comment="site-under-test")
        shutil.move(f"{key}.pub", self.server_data / "ssh/site.pub")
        self.write_compose_files()

    def write_compose_files(self) -> None:
        """Write the compose files with the environment and the service keys as they are now."""
        ports = {
            '"2222:22"': f'"{self.address}:{self.ssh_port}:22"',
            '"80:80/tcp"': f'"127.0.0.1:{self.http_port}:80/tcp"',
            '"443:443/tcp"': f'"127.0.0.1:{self.https_port}:443/tcp"',
        }
        for role in ROLES:
            text = (ROOT / f"docker-compose.{role}.yaml").read_text(encoding="utf-8")
            for published, here in ports.items():
                text = text.replace(f"- {published}\n", f"- {here}\n")
            (self.folder / f"docker-compose.{role}.yaml").write_text(text, encoding="utf-8")
            own = {
                "container_name": self.name(role),
                "image": IMAGE.format(role=role),
                "build": {"context": str(ROOT / role)},
                "labels": {LABEL: str(os.getpid())},
                "healthcheck": {"interval": "2s"},  # the first check comes after one interval
            }
            if role == "client":
                environment = {"SYNC_PORT": str(self.ssh_port), "SYNC_RETRY_DELAY": "1s", **self.environment}
                own |= {"environment": environment, **self.service}
            networks = {f"clr-{role}": {"name": self.name(role)}}
            override = {"services": {f"clr-{role}": own}, "networks": networks}
            (self.folder / f"override.{role}.yaml").write_text(json.dumps(override, indent=1), encoding="utf-8")

    def name(self, role: str) -> str:
        """Name of a role's container."""
        return f"clr-{role}-{self.id}"

    def run_compose(self, role: str, *words: str) -> str:
        """Run Compose on a role's files; return what it printed."""
        files = [
            "-f",
            str(self.folder / f"docker-compose.{role}.yaml"),
            "-f",
            str(self.folder / f"override.{role}.yaml"),
        ]
        done = run(self.compose, "-p", f"clr-{role}-{self.id}", "--project-directory", self.folder, *files, *words)
        return done.stdout + done.stderr

    def up(self, *roles: str) -> None:
        """Start both roles, or those named, with `up -d`."""
        for role in roles or ROLES:
            self.run_compose(role, "up", "-d", "--no-build")

    def down(self, *roles: str) -> None:
        """Stop and remove both roles, or those named, with `down`."""
        for role in roles or tuple(reversed(ROLES)):
            self.run_compose(role, "down")

    def exec(self, role: str, *words: str, check: bool = True) -> str:
        """`docker exec` in a role's container; return what it printed."""
        return docker("exec", self.name(role), *words, check=check)

    def clr(self, *words: str, check: bool = True) -> str:
        """`docker exec clr-client clr …`, as the documentation has it."""
        return self.exec("client", "clr", *words, check=check)

    def logs(self, role: str) -> str:
        """`docker logs` of a role; docker's complaint when there is no such container."""
        return docker("logs", self.name(role), check=False)

    def inspect(self, role: str) -> dict[str, Any]:
        """`docker inspect` of a role's container."""
        found: list[dict[str, Any]] = json.loads(run("docker", "inspect", self.name(role)).stdout)
        return found[0]

    def healthy(self, role: str) -> bool:
        """Tell whether the engine calls a role healthy."""
        return str(self.inspect(role)["State"]["Health"]["Status"]) == "healthy"

    def wait_healthy(self, *roles: str) -> None:
        """Wait until the engine calls both roles, or those named, healthy."""
        for role in roles or ROLES:
            try:
                wait_until(partial(self.healthy, role), START_SECONDS, f"a healthy {role}")
            except AssertionError as error:
                error.add_note(json.dumps(self.inspect(role)["State"], indent=1)[-2000:])
                raise

    def fetch(self, path: str) -> bytes:
        """GET a path of the client's site over HTTP from this host."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.http_port}/{path}", timeout=30) as answer:
            body: bytes = answer.read()
            return body

    def wait_runs(self, count: int) -> list[dict[str, Any]]:
        """Wait until ``count`` syncs have ended; return the runs of `status.json`, newest first."""
        wait_until(lambda: len(self.runs()) >= count, START_SECONDS, f"{count} syncs")
        return self.runs()

    def runs(self) -> list[dict[str, Any]]:
        """The ended syncs that `status.json` remembers, newest first."""
        try:
            status = json.loads((self.library / "status.json").read_text(encoding="utf-8"))
        except FileNotFoundError:
            return []
        runs: list[dict[str, Any]] = status["runs"]
        return runs

    def host_keys(self) -> set[str]:
        """Fingerprints that the server's log tells people to pin."""
        return set(re.findall(r"SHA256:[A-Za-z0-9+/]{43}(?=\s+pin)", self.logs("server")))

    def remove(self) -> None:
        """Remove the containers, their networks and their data."""
        self.down()
        # What the containers wrote belongs to their accounts
        wipe = ("--entrypoint", "find", IMAGE.format(role="client"), "/folder", "-mindepth", "1", "-delete")
        docker("run", "--rm", "-v", f"{self.folder}:/folder", *wipe, check=False)


def build(compose: str, *roles: str, folder: Path, tag: str = "latest") -> None:
    """Build the images of roles from their Dockerfiles with `compose build`, under the names that the tests use."""
    for role in roles:
        labelled = {"context": str(ROOT / role), "labels": {LABEL: "image"}}
        service = {"image": f"{IMAGE.format(role=role)}:{tag}", "build": labelled}
        override = folder / f"build.{role}.yaml"
        override.write_text(json.dumps({"services": {f"clr-{role}": service}}), encoding="utf-8")
        files: Sequence[str | Path] = ("-f", ROOT / f"docker-compose.{role}.yaml", "-f", override)
        run(compose, "--project-directory", ROOT, *files, "build", timeout=900)


def remove_leftovers() -> None:
    """Remove containers of test runs that ended before they could, and images that newer ones replaced."""
    form = f'{{{{.ID}}}} {{{{.Label "{LABEL}"}}}}'
    for line in run("docker", "ps", "-a", "--filter", f"label={LABEL}", "--format", form).stdout.splitlines():
        container, pid = line.split()
        if not Path(f"/proc/{pid}").exists():
            docker("rm", "-f", container)
    docker("image", "prune", "--force", "--filter", f"label={LABEL}")
