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
    """Serves ``library`` honestly until it is told to ``play`` or to ``run`` something else."""

    def __init__(self, library: Path, workdir: Path) -> None:
        programs = workdir / "programs"
        shutil.copytree(SERVER, programs, ignore=shutil.ignore_patterns("__pycache__", "Dockerfile*"))
        self.act = workdir / "act"
        (programs / "serve-library").rename(programs / "serve-honestly")
        (programs / "serve-library").write_text(
            f'#!/bin/sh\n[ ! -e {self.act} ] || exec sh {self.act}\nexec {programs}/serve-honestly "$@"\n'
        )
        (programs / "serve-library").chmod(0o755)
        super().__init__(library, workdir, wrapper=["sh", "-c", f"exec {programs}/entrypoint.sh"])

    def play(self, play: Play) -> None:
        """Answer every session with a play from now on."""
        script = self.workdir / "play"
        script.write_bytes(pickle.dumps(play))
        tests = Path(__file__).resolve().parents[1]
        code = f"import sys; sys.path.insert(0, '{tests}'); from support.fake_rsync import main; main('{script}')"
        self.run(f"exec {shlex.quote(sys.executable)} -B -c {shlex.quote(code)}")

    def run(self, command: str) -> None:
        """Answer every session with a shell command from now on; $SSH_ORIGINAL_COMMAND is what was asked."""
        new = self.act.with_suffix(".new")
        new.write_text(command + "\n")
        new.replace(self.act)

    def be_honest(self) -> None:
        """Answer with the real library from now on."""
        self.act.unlink(missing_ok=True)
