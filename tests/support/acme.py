"""An ACME server and a site that gets its certificate from it; run by a test in name spaces of its own.

Ports 80 and 443 are fixed by the protocol, so this needs its own network. Arguments: the Caddy to use, and a folder.
Prints, as JSON, the status and headers of the site over HTTPS, verified against the ACME server's root, and whether the
certificate that it shows is the one that its status describes.
"""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import json
import os
import socket
import ssl
import struct
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clr_client import settings as clr_settings
from clr_client.web import caddy, certificate
from clr_client.web.config import certificate_files, configuration

from support.server import wait_until

if TYPE_CHECKING:
    from clr_client.settings import Settings

NAME = "localhost"
AUTHORITY = {
    "admin": {"disabled": True},
    "apps": {
        "pki": {"certificate_authorities": {"local": {"install_trust": False}}},
        "http": {
            "http_port": 9080,
            "servers": {
                "acme": {
                    "listen": ["127.0.0.1:9443"],
                    "routes": [{"handle": [{"handler": "acme_server", "ca": "local"}]}],
                    "tls_connection_policies": [{"default_sni": NAME}],
                    "automatic_https": {"disable": True},
                }
            },
        },
        "tls": {
            "certificates": {"automate": [NAME]},
            "automation": {"policies": [{"subjects": [NAME], "issuers": [{"module": "internal"}]}]},
        },
    },
}


def main(program: str, home: Path) -> dict[str, Any]:
    loopback_up()
    environment = {**os.environ, "HOME": str(home), "XDG_CONFIG_HOME": str(home), "XDG_DATA_HOME": str(home)}
    storage = {"module": "file_system", "root": str(home / "authority")}
    authority = subprocess.Popen(
        [program, "run", "--config", "-"], stdin=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment
    )
    assert authority.stdin
    authority.stdin.write(json.dumps({**AUTHORITY, "storage": storage}).encode())
    authority.stdin.close()
    root = home / "authority" / "pki" / "authorities" / "local" / "root.crt"
    wait_until(root.exists, what="the ACME server")
    folders = {f"CLR_{name}_DIR": str(home / name.lower()) for name in ("LIBRARY", "RUN", "DATA")}
    for folder in folders.values():
        Path(folder).mkdir()
    try:
        return asyncio.run(site(clr_settings.load({"TLS_NAME": NAME, **folders})[0], program, root))
    finally:
        authority.terminate()
        authority.wait(20)


def loopback_up() -> None:
    """Switch on the loopback interface of a new network name space."""
    up, set_flags = 1, 0x8914  # IFF_UP and SIOCSIFFLAGS
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        fcntl.ioctl(any_socket, set_flags, struct.pack("16sh22x", b"lo", up))


async def site(settings: Settings, program: str, root: Path) -> dict[str, Any]:
    config = configuration(settings)
    issuer = config["apps"]["tls"]["automation"]["policies"][0]["issuers"][0]
    issuer["ca"] = "https://localhost:9443/acme/local/directory"
    issuer["trusted_roots_pem_files"] = [str(root)]
    issuer["challenges"] = {"tls-alpn": {"disabled": True}}  # the challenge that has to get past our own routes
    site = caddy.Caddy(settings, program)
    await site.start(config)
    try:
        answer = await asyncio.to_thread(
            lambda: wait_until(lambda: ask(root), 60, "a certificate from the ACME server")
        )
        assert answer is not None
        shown = ssl.PEM_cert_to_DER_cert(await asyncio.to_thread(ssl.get_server_certificate, (NAME, 443)))
        files = certificate_files(settings)
        assert files is not None
        described = certificate.describe(*files)
        is_shown = described.sha256.replace(":", "").lower() == hashlib.sha256(shown).hexdigest()
        return {**answer, "described": is_shown, "not_after": described.not_after.isoformat()}
    finally:
        await site.stop()


def ask(root: Path) -> dict[str, Any] | None:
    try:
        context = ssl.create_default_context(cafile=str(root))
        urllib.request.urlopen(f"https://{NAME}/lib.json", context=context, timeout=5).close()
    except urllib.error.HTTPError as answer:
        with answer:
            return {"status": answer.code, "headers": dict(answer.headers)}
    except OSError:
        pass
    return None


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], Path(sys.argv[2]))))
