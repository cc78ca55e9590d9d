"""The table of sites, made as the documentation says of what `docker logs` shows."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
from typing import TYPE_CHECKING

from prometheus_client.parser import text_string_to_metric_families
from support.engine import Pair, run
from support.server import make_key, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def table(pair: Pair, *options: str) -> str:
    """What `docker logs SERVER 2>&1 | docker exec -i SERVER sites` prints."""
    name = pair.name("server")
    line = f"docker logs {name} 2>&1 | docker exec -i {name} sites {shlex.join(options)}"
    return subprocess.run(line, shell=True, check=True, capture_output=True, text=True, timeout=60).stdout


def test_the_sessions_of_two_keys_are_two_sites_with_the_bytes_that_rsync_counted(
    make_pair: Callable[..., Pair], tmp_path: Path
) -> None:
    pair = make_pair()
    (pair.templates / "tools").mkdir()
    (pair.templates / "tools/tools.iso").write_bytes(os.urandom(3_000_000))
    keys = {name: make_key(tmp_path / name, comment=name) for name in ("oslo", "lima")}
    for name, key in keys.items():
        (pair.server_data / f"ssh/{name}.pub").write_bytes(key.with_suffix(".pub").read_bytes())
    pair.up("server")
    pair.wait_healthy("server")

    counted = {}
    for name, path in {"oslo": "tools", "lima": "tools/tools.iso"}.items():
        ssh = ["ssh", "-F", "none", "-i", str(keys[name]), "-o", "IdentitiesOnly=yes", "-o", "BatchMode=yes"]
        ssh += ["-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-o", "LogLevel=ERROR"]
        ssh += ["-p", str(pair.ssh_port), "-l", "syncer"]
        argv = ["rsync", "-r", "--stats", "-e", shlex.join(ssh), f"{pair.address}:{path}", str(tmp_path / f"at-{name}")]
        counted[name] = re.search(r"Total bytes received: ([\d,]+)", run(*argv).stdout)
    wait_until(lambda: pair.logs("server").count(" end exit=0 ") == 2, what="both sessions' ends")

    sites = {site["site"]: site for site in json.loads(table(pair, "--json"))}
    assert sites.keys() == {"lima", "oslo", "site-under-test"}
    for name, found in counted.items():
        assert found
        bytes_received = int(found[1].replace(",", ""))
        assert bytes_received > 3_000_000
        assert abs(sites[name]["sent_bytes"] - bytes_received) < bytes_received / 100
        assert 0 < sites[name]["received_bytes"] < 10_000
        assert (sites[name]["state"], sites[name]["sessions"], sites[name]["failures"]) == ("ok", 1, 0)
        assert re.fullmatch(r"[\d.]+", sites[name]["address"])
    assert sites["site-under-test"]["state"] == "never"
    lines = table(pair).splitlines()
    assert [line.split()[0] for line in lines] == ["SITE", "lima", "oslo", "site-under-test"]
    assert "3.0 MB" in lines[1]


def test_a_clients_sync_is_a_visit_with_the_bytes_that_its_own_metrics_tell(make_pair: Callable[..., Pair]) -> None:
    pair = make_pair()
    (pair.templates / "tools").mkdir()
    (pair.templates / "tools/tools.iso").write_bytes(os.urandom(3_000_000))
    pair.up()
    pair.wait_runs(1)

    def metrics() -> dict[str, float]:
        families = text_string_to_metric_families(pair.fetch("_clr/metrics").decode())
        return {sample.name: sample.value for family in families for sample in family.samples if not sample.labels}

    # The client tells of its transfers; the server's sessions are these and the listings.
    received = wait_until(lambda: metrics().get("clr_sync_received_bytes_total"), what="the metrics of the sync")
    wait_until(lambda: json.loads(table(pair, "--json"))[0]["state"] == "ok", what="the end of the visit")
    (site,) = json.loads(table(pair, "--json"))
    assert (site["site"], site["failures"], site["refusals"]) == ("site-under-test", 0, 0)
    assert site["sessions"] >= 2
    assert received > 3_000_000
    assert 0 <= site["sent_bytes"] - received < received / 20
