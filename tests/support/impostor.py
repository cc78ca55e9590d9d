"""A server that was taken over: the real entrypoint and sshd, whose forced command is not ours any more."""

from __future__ import annotations

import pickle
import shlex
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from support.server import SERVER, Server

if TYPE_CHECKING:
    from support.fake_rsync import Play


class Impostor(Server):
    """Serves ``library`` honestly until it is told to ``play`` or to ``run`` something else.

    It listens on ``addresses`` besides 127.0.0.1, and may behave differently on each.
    """

    addresses = tuple(f"127.0.0.{number}" for number in range(2, 10))

    def __init__(self, library: Path, workdir: Path) -> None:
        programs = workdir / "programs"
        shutil.copytree(SERVER, programs, ignore=shutil.ignore_patterns("__pycache__", "Dockerfile*"))
        self.act = workdir / "act"
        (programs / "serve-library").rename(programs / "serve-honestly")
        (programs / "serve-library").write_text(
            "#!/bin/sh\nto=${SSH_CONNECTION#* * }\n"
            f'for act in {self.act}-"${{to%% *}}" {self.act}; do [ ! -e "$act" ] || exec sh "$act"; done\n'
            f'exec {programs}/serve-honestly "$@"\n'
        )
        (programs / "serve-library").chmod(0o755)
        super().__init__(library, workdir, wrapper=["sh", "-c", f"exec {programs}/entrypoint.sh"])
        listen = "".join(f" ListenAddress={address}" for address in self.addresses)
        self.environment["CLR_SSHD_OPTIONS"] += listen

    def play(self, play: Play, address: str = "") -> None:
        """Answer every session with a play from now on, or those on one of the addresses."""
        script = self.workdir / f"play{address}"
        script.write_bytes(pickle.dumps(play))
        tests = Path(__file__).resolve().parents[1]
        code = f"import sys; sys.path.insert(0, '{tests}'); from support.fake_rsync import main; main('{script}')"
        self.run(f"exec {shlex.quote(sys.executable)} -B -c {shlex.quote(code)}", address)

    def run(self, command: str, address: str = "") -> None:
        """The same with a shell command; $SSH_ORIGINAL_COMMAND is what was asked."""
        new = self.act.with_suffix(".new")
        new.write_text(command + "\n")
        new.replace(self.workdir / f"act-{address}" if address else self.act)

    def be_honest(self) -> None:
        """Answer with the real library from now on."""
        self.act.unlink(missing_ok=True)
