"""The configuration of the server's sshd, read back by sshd and judged by ssh-audit."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from ssh_audit.builtin_policies import BUILTIN_POLICIES  # type: ignore[import-untyped]
from support.server import SERVER, Server, make_key

SSHD = "/usr/sbin/sshd"

# Not key exchanges, but announced among them; policies for releases before 9.9 do not list them.
EXTENSIONS = {"kex": ["ext-info-s", "kex-strict-s-v00@openssh.com"]}


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
    answer = subprocess.run([SSHD, "-V"], capture_output=True, text=True, check=False)
    found = re.search(r"OpenSSH_(\d+\.\d+)", answer.stderr)
    assert found, answer
    name = next(name for name in BUILTIN_POLICIES if name.startswith(f"Hardened OpenSSH Server v{found[1]} "))
    policy = BUILTIN_POLICIES[name]
    # The server may offer less than the policy, and nothing else.
    text = ['name = "clr-server"', "version = 1", "allow_algorithm_subset_and_reordering = true"]
    for words, key in (("host keys", "host_keys"), ("key exchanges", "kex"), ("ciphers", "ciphers"), ("macs", "macs")):
        text.append(f"{words} = {', '.join([*policy[key], *EXTENSIONS.get(key, [])])}")
    text.append("hostkey_size_rsa-sha2-512 = 4096")
    (tmp_path / "policy").write_text("\n".join(text) + "\n")
    with Server(library, tmp_path / "s") as server:
        argv = [sys.executable, "-m", "ssh_audit", "--skip-rate-test", "-p", str(server.port)]
        judged = subprocess.run(
            [*argv, "-P", str(tmp_path / "policy"), "127.0.0.1"],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert judged.returncode == 0, judged.stdout
        assert "Passed" in judged.stdout
        audited = subprocess.run(
            [*argv, "-l", "fail", "127.0.0.1"], capture_output=True, text=True, timeout=60, check=False
        )
        assert "[fail]" not in audited.stdout
