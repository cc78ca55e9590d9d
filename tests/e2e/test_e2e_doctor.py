"""`clr doctor` in the images: before the first start as a container of its own, and beside a running client."""

from __future__ import annotations

import json
import subprocess
from typing import TYPE_CHECKING, Any

import pytest
from support.templates import fake_template

if TYPE_CHECKING:
    from collections.abc import Callable

    from support.engine import Pair


def asked(printed: str) -> dict[str, Any]:
    """The JSON in what Compose printed, findings by check."""
    document = json.loads(printed[printed.index("{") : printed.rindex("}") + 1])
    return {finding["check"]: finding for finding in document["findings"]} | {"ok": document["ok"]}


def test_a_fresh_site_is_told_what_to_do_and_a_healthy_one_that_all_is_well(make_pair: Callable[..., Pair]) -> None:
    pair = make_pair()
    fake_template(pair.templates / "photon-web")
    pair.up("server")
    pair.wait_healthy("server")

    fresh = asked(pair.run_compose("client", "run", "--rm", "clr-client", "doctor", "--json"))
    assert fresh["ok"] is True
    assert fresh["reading"]["result"] == "ok"
    assert fresh["host key"]["result"] == "warning"
    assert [key for key in pair.host_keys() if key in fresh["host key"]["text"]]
    assert "gives it to uid 31337" in fresh["folders"]["text"] or fresh["folders"]["result"] == "ok"
    assert list(pair.library.iterdir()) == []

    pair.up("client")
    pair.wait_runs(1)
    pair.wait_healthy()
    healthy = asked(pair.clr("doctor", "--json"))
    assert healthy.pop("ok") is True
    assert [finding for finding in healthy.values() if finding["result"] != "ok"] == []
    assert "SUCCESS" in healthy["subscriber"]["text"]
    assert pair.clr("doctor").splitlines()[-1].endswith("nothing keeps this site from working")


def test_a_site_without_a_key_at_a_server_without_sites_is_told_both(make_pair: Callable[..., Pair]) -> None:
    pair = make_pair(environment={"SYNC_SCHEDULE": "often"})
    (pair.client_data / "ssh" / "id_syncer").unlink()
    pair.up("server")
    with pytest.raises(subprocess.CalledProcessError) as caught:
        pair.run_compose("client", "run", "--rm", "clr-client", "doctor")
    assert caught.value.returncode == 4
    assert "problem settings: SYNC_SCHEDULE='often'" in caught.value.stdout
    assert "is missing, so no server lets this site in" in caught.value.stdout
