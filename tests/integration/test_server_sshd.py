"""The configuration of the server's sshd, read back by sshd and judged by ssh-audit."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from support.audit import audit
from support.server import SERVER, Server, make_key

SSHD = "/usr/sbin/sshd"


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The server's sshd_config as this machine's sshd understands it."""
    key = make_key(tmp_path_factory.mktemp("sshd") / "key")
    argv = [SSHD, "-T", "-f", str(SERVER / "sshd_config"), "-h", str(key)]
    Path("/run/sshd").mkdir(exist_ok=True)
    answer = subprocess.run(argv, capture_output=True, text=True, check=True)
    assert answer.stderr == ""
    return dict(line.split(" ", 1) for line in answer.stdout.splitlines())


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("allowusers", "syncer"),
        ("permitrootlogin", "no"),
        ("authenticationmethods", "publickey"),
        ("passwordauthentication", "no"),
        ("kbdinteractiveauthentication", "no"),
        ("hostbasedauthentication", "no"),
        ("permitemptypasswords", "no"),
        ("usepam", "no"),
        ("strictmodes", "yes"),
        ("disableforwarding", "yes"),
        ("allowtcpforwarding", "no"),
        ("allowstreamlocalforwarding", "no"),
        ("allowagentforwarding", "no"),
        ("x11forwarding", "no"),
        ("permittunnel", "no"),
        ("gatewayports", "no"),
        ("permittty", "no"),
        ("permituserrc", "no"),
        ("permituserenvironment", "no"),
        ("compression", "no"),
        ("clientaliveinterval", "10"),
        ("clientalivecountmax", "3"),
        ("maxauthtries", "3"),
        ("maxsessions", "1"),
        ("unusedconnectiontimeout", "30"),
        ("logingracetime", "30"),
        ("requiredrsasize", "2048"),
        ("usedns", "no"),
        ("pubkeyacceptedalgorithms", "ssh-ed25519,rsa-sha2-512,rsa-sha2-256"),
    ],
)
def test_sshd_is_hardened(name: str, value: str, settings: dict[str, str]) -> None:
    assert settings[name] == value


def test_nothing_but_the_forced_command_can_be_reached(settings: dict[str, str]) -> None:
    assert "subsystem" not in settings
    assert "acceptenv" not in settings
    assert settings["forcecommand"] == "none"  # each key carries its own, with its site


def test_ssh_audit_finds_nothing_outside_of_its_hardened_policy(tmp_path: Path) -> None:
    library = tmp_path / "library"
    library.mkdir()
    release = subprocess.run([SSHD, "-V"], capture_output=True, text=True, check=False).stderr
    with Server(library, tmp_path / "s") as server:
        assert audit("127.0.0.1", server.port, release, tmp_path) == ""
