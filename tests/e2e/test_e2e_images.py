"""The images and compose files themselves."""

from __future__ import annotations

import json
import re
import shutil
import tomllib
from typing import TYPE_CHECKING, Any

import pytest
from support import engine
from support.engine import IMAGE, ROLES, ROOT, docker, run

if TYPE_CHECKING:
    from pathlib import Path

VOLUMES = {
    "server": {"/home/syncer/.ssh", "/syncer/library", "/etc/ssh/keys"},
    "client": {"/syncer/.ssh", "/syncer/library", "/etc/caddycerts", "/data"},
}


def image(role: str) -> dict[str, Any]:
    found: list[dict[str, Any]] = json.loads(run("docker", "image", "inspect", IMAGE.format(role=role)).stdout)
    return found[0]


@pytest.mark.parametrize("role", ROLES)
def test_an_image_says_what_it_is_and_how_it_is_run(images: None, role: str) -> None:
    config = image(role)["Config"]
    label = "org.opencontainers.image"
    assert {f"{label}.title", f"{label}.description", f"{label}.version", f"{label}.licenses"} <= set(config["Labels"])
    assert config["Labels"][f"{label}.licenses"] == "MIT"
    assert config["Healthcheck"]["Test"][0] == "CMD"
    assert config["StopSignal"] == "SIGTERM"
    assert isinstance(config["Entrypoint"], list)


def test_the_client_image_holds_the_version_of_this_source(images: None) -> None:
    version = tomllib.loads((ROOT / "client/pyproject.toml").read_text())["project"]["version"]
    assert image("client")["Config"]["Labels"]["org.opencontainers.image.version"] == version
    assert f"clr {version}" in docker("run", "--rm", IMAGE.format(role="client"), "version")


@pytest.mark.parametrize("role", ROLES)
def test_an_image_holds_no_keys_and_no_package_lists(images: None, role: str) -> None:
    places = ("/etc/ssh", "/syncer", "/home", "/var/lib/apt/lists", "/var/cache/apt")
    unwanted = ("-name", "*_key*", "-o", "-name", "id_*", "-o", "-name", "*_Packages*", "-o", "-name", "*.deb")
    entry = ("--entrypoint", "find", IMAGE.format(role=role))
    assert run("docker", "run", "--rm", *entry, *places, *unwanted, check=False).stdout == ""


@pytest.mark.parametrize("role", ROLES)
def test_an_image_holds_no_program_that_gives_rights(images: None, role: str) -> None:
    find = ("find", "/", "-xdev", "-type", "f", "-perm", "/6000")
    assert run("docker", "run", "--rm", "--entrypoint", find[0], IMAGE.format(role=role), *find[1:]).stdout == ""
    find = ("find", "/usr", "/etc", "/opt", "-xdev", "-perm", "-o=w", "!", "-type", "l")
    assert run("docker", "run", "--rm", "--entrypoint", find[0], IMAGE.format(role=role), *find[1:]).stdout == ""
    getcap = (
        "import os; print([p for d, _, f in os.walk('/usr') for p in (os.path.join(d, n) for n in f)"
        " if not os.path.islink(p) and 'security.capability' in os.listxattr(p)])"
    )
    entry = ("--entrypoint", "python3", IMAGE.format(role=role), "-ISc", getcap)
    assert run("docker", "run", "--rm", *entry).stdout.strip() == "[]"


@pytest.mark.parametrize("role", ROLES)
def test_an_image_has_the_rsync_whose_holes_are_closed(images: None, role: str) -> None:
    entry = ("--entrypoint", "rsync", IMAGE.format(role=role), "--version")
    version = re.search(r"version v?(\d+)\.(\d+)\.", run("docker", "run", "--rm", *entry).stdout)
    assert version
    assert (int(version[1]), int(version[2])) >= (3, 5)


def test_a_schedule_in_a_zone_of_the_old_names_is_known(images: None) -> None:
    settings = ("-e", "TZ=US/Eastern", "-e", "SYNC_PEER=nobody.example")
    assert "(US/Eastern)" in docker("run", "--rm", *settings, IMAGE.format(role="client"), "schedule")


@pytest.mark.parametrize("role", ROLES)
def test_data_of_a_site_never_gets_into_an_image(images: None, role: str, tmp_path: Path) -> None:
    context = tmp_path / role
    shutil.copytree(ROOT / role, context, ignore=shutil.ignore_patterns("data"))
    for secret in ("data/ssh/id_syncer", "data/library/one/disk.vmdk", ".env"):
        (context / secret).parent.mkdir(parents=True, exist_ok=True)
        (context / secret).write_text("not for an image")
    (context / "Dockerfile").write_text(f"FROM {IMAGE.format(role=role)}\nCOPY . /context\n")
    copied = f"clr-e2e-context-{role}"

    docker("build", "-t", copied, context)

    look = ("grep", "-rlE", "not for an image|set -eu", "/context")
    found = run("docker", "run", "--rm", "--entrypoint", look[0], copied, *look[1:]).stdout.split()
    docker("rmi", copied)
    assert "/context/entrypoint.sh" in found
    assert not [path for path in found if "data/" in path or path.endswith(".env")]


@pytest.mark.parametrize("role", ROLES)
def test_a_compose_file_means_the_same_to_either_compose(each_compose: str, role: str) -> None:
    done = run(each_compose, "-f", ROOT / f"docker-compose.{role}.yaml", "config")
    text = done.stdout
    assert done.stderr == ""
    assert f"container_name: clr-{role}" in text
    assert "no-new-privileges" in text
    assert "read_only: true" in text
    for volume in VOLUMES[role]:
        assert volume in text


@pytest.mark.parametrize("role", ROLES)
def test_every_volume_says_what_is_lost_without_it(role: str) -> None:
    text = (ROOT / f"docker-compose.{role}.yaml").read_text()
    section = re.search(r"^    volumes:\n(.*?)^    \w", text, re.DOTALL | re.MULTILINE)
    assert section
    volumes = re.findall(r"((?:^      #.*\n)+)      - \./(\S+?):(/\S+?)(?::ro)?\n", section[1], re.MULTILINE)
    assert {target for _, _, target in volumes} == VOLUMES[role]
    for comment, source, _ in volumes:
        assert "ithout it" in comment
        assert source.startswith(f"{role}/data/")


def test_both_roles_of_one_host_share_no_name_and_no_port(compose2: str) -> None:
    server, client = (
        json.loads(run(compose2, "-f", ROOT / f"docker-compose.{role}.yaml", "config", "--format", "json").stdout)
        for role in ROLES
    )

    def published(config: dict[str, Any]) -> set[str]:
        return {port["published"] for service in config["services"].values() for port in service["ports"]}

    assert published(server) == {"2222"}
    assert published(client) == {"80", "443"}
    for key in ("services", "networks"):
        assert not set(server[key]) & set(client[key])
    names = [network["name"] for config in (server, client) for network in config["networks"].values()]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("role", ROLES)
def test_compose_v2_builds_the_images_too(images: None, compose2: str, role: str, tmp_path: Path) -> None:
    engine.build(compose2, role, folder=tmp_path, tag="v2")
