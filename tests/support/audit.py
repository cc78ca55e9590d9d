"""A server judged by ssh-audit."""

from __future__ import annotations

import re
import subprocess
import sys
from typing import TYPE_CHECKING

from ssh_audit.builtin_policies import BUILTIN_POLICIES  # type: ignore[import-untyped]

if TYPE_CHECKING:
    from pathlib import Path

# Not key exchanges, but announced among them; policies for releases before 9.9 do not list them.
EXTENSIONS = {"kex": ["ext-info-s", "kex-strict-s-v00@openssh.com"]}


def audit(host: str, port: int, banner: str, folder: Path) -> str:
    """What ssh-audit says about a server beyond its hardened policy for the release in ``banner``; empty if nothing.

    ``folder`` is for the policy. The server may offer less than the policy, and nothing else.
    """
    found = re.search(r"OpenSSH_(\d+\.\d+)", banner)
    assert found, banner
    name = next(name for name in BUILTIN_POLICIES if name.startswith(f"Hardened OpenSSH Server v{found[1]} "))
    policy = BUILTIN_POLICIES[name]
    text = ['name = "clr-server"', "version = 1", "allow_algorithm_subset_and_reordering = true"]
    for words, key in (("host keys", "host_keys"), ("key exchanges", "kex"), ("ciphers", "ciphers"), ("macs", "macs")):
        text.append(f"{words} = {', '.join([*policy[key], *EXTENSIONS.get(key, [])])}")
    text.append("hostkey_size_rsa-sha2-512 = 4096")
    (folder / "policy").write_text("\n".join(text) + "\n")
    judged = _ssh_audit("-P", str(folder / "policy"), "-p", str(port), host)
    if judged.returncode != 0 or "Passed" not in judged.stdout:
        return judged.stdout + judged.stderr
    audited = _ssh_audit("-l", "fail", "-p", str(port), host)
    return audited.stdout if "[fail]" in audited.stdout else ""


def _ssh_audit(*words: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "ssh_audit", "--skip-rate-test", *words]
    return subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
