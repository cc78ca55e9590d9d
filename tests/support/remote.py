"""A server in a network namespace: ``python -m support.remote LIBRARY WORKDIR ADDRESS PORT``; ends with its stdin."""

from __future__ import annotations

import sys
from pathlib import Path

from support.server import Server


def main() -> None:
    library, workdir, address, port = sys.argv[1:]
    server = Server(Path(library), Path(workdir), port=int(port))
    server.environment["CLR_SSHD_OPTIONS"] += f" ListenAddress={address}"
    with server:
        print("ready", flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    main()
