"""Caddy's configuration, as a function of the settings."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest
from clr_client import settings as clr_settings
from clr_client.web.certificate import Pair
from clr_client.web.config import configuration
from hypothesis import given
from hypothesis import strategies as st

PAIR = Pair("CERTIFICATE", "KEY", datetime(2030, 1, 1, tzinfo=UTC))
HASH = "$2a$14$abcdefghijklmnopqrstuv"
MODES: dict[str, dict[str, str]] = {
    "http": {},
    "acme": {"TLS_NAME": "library.example.com"},
    "internal": {"TLS_NAME": "library.example.com", "TLS_INTERNAL": "true"},
    "custom": {"TLS_NAME": "library.example.com", "TLS_CUSTOM_CERT": "true"},
}


def build(pair: Pair | None = PAIR, password_hash: str = "", **environment: str) -> dict[str, Any]:
    return configuration(clr_settings.load(environment)[0], pair=pair, password_hash=password_hash)


def servers(config: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = config["apps"]["http"]["servers"]
    return found


@pytest.mark.parametrize("mode", MODES)
def test_control_is_a_unix_socket_and_nothing_is_written_or_reported(mode: str) -> None:
    config = build(**MODES[mode], CLR_RUN_DIR="/run/x")
    assert config["admin"] == {"listen": "unix//run/x/caddy.sock", "config": {"persist": False}}


@pytest.mark.parametrize("mode", MODES)
def test_certificates_and_state_are_kept_on_the_data_volume(mode: str) -> None:
    assert build(**MODES[mode], CLR_DATA_DIR="/data")["storage"] == {"module": "file_system", "root": "/data/caddy"}


@pytest.mark.parametrize("mode", ["acme", "internal", "custom"])
def test_no_mode_has_the_system_trust_a_new_ca(mode: str) -> None:
    authorities = build(**MODES[mode])["apps"]["pki"]["certificate_authorities"]
    assert [authority["install_trust"] for authority in authorities.values()] == [False]


def test_without_a_name_the_library_is_served_over_http_alone() -> None:
    config = build(HTTP_PORT="8080")
    assert {name: server["listen"] for name, server in servers(config).items()} == {"library": [":8080"]}
    assert "tls" not in config["apps"]


@pytest.mark.parametrize("mode", ["acme", "internal", "custom"])
def test_with_a_name_http_only_redirects(mode: str) -> None:
    found = servers(build(**MODES[mode], HTTP_PORT="8080", HTTPS_PORT="8443"))
    assert {name: server["listen"] for name, server in found.items()} == {"redirect": [":8080"], "library": [":8443"]}
    assert "file_server" not in json.dumps(found["redirect"])
    assert "https://library.example.com:8443{http.request.uri}" in json.dumps(found["redirect"])


@pytest.mark.parametrize(
    ("name", "location"),
    [
        ("library.example.com", "https://library.example.com{"),
        ("192.0.2.1", "https://192.0.2.1{"),
        ("2001:db8::1", "https://[2001:db8::1]{"),
    ],
)
def test_redirect_names_the_site_without_the_usual_port(name: str, location: str) -> None:
    assert location in json.dumps(servers(build(TLS_NAME=name))["redirect"])


def test_name_alone_means_acme_without_an_address_for_mail() -> None:
    tls = build(**MODES["acme"])["apps"]["tls"]
    assert tls["certificates"] == {"automate": ["library.example.com"]}
    assert tls["automation"]["policies"] == [{"subjects": ["library.example.com"], "issuers": [{"module": "acme"}]}]


def test_own_pair_is_handed_over_as_it_is() -> None:
    config = build(**MODES["custom"])
    assert config["apps"]["tls"]["certificates"] == {
        "load_pem": [{"certificate": "CERTIFICATE", "key": "KEY", "tags": ["site"]}]
    }


def test_without_a_usable_pair_neither_https_nor_the_library_is_offered() -> None:
    config = build(None, **MODES["custom"], LIBRARY_BROWSE="true")
    assert list(servers(config)) == ["closed"]
    assert "file_server" not in json.dumps(config)


@pytest.mark.parametrize("mode", MODES)
def test_no_timeout_can_cut_a_long_download(mode: str) -> None:
    config = build(**MODES[mode])
    assert "grace_period" not in config["apps"]["http"]
    for server in servers(config).values():
        assert not {"write_timeout", "read_timeout"} & set(server)
        assert {"read_header_timeout", "idle_timeout"} <= set(server)


@pytest.mark.parametrize("browse", ["true", "false"])
def test_password_comes_before_every_file(browse: str) -> None:
    routes = servers(build(password_hash=HASH, LIBRARY_BROWSE=browse))["library"]["routes"]
    kinds = [json.dumps(route) for route in routes]
    asks = next(number for number, kind in enumerate(kinds) if "http_basic" in kind)
    serves = [number for number, kind in enumerate(kinds) if "file_server" in kind]
    assert "match" not in routes[asks]
    assert asks < min(serves)


def test_password_itself_is_nowhere_in_the_configuration() -> None:
    config = json.dumps(build(password_hash=HASH, LIBRARY_PASSWORD="geheim"))
    assert "geheim" not in config
    assert HASH in config


def test_listings_are_made_only_when_wished() -> None:
    assert '"browse"' not in json.dumps(build())
    assert '"browse"' in json.dumps(build(LIBRARY_BROWSE="true"))


@pytest.mark.parametrize(("level", "logged"), [("info", False), ("debug", True)])
def test_requests_are_logged_for_debugging_only(level: str, logged: bool) -> None:
    assert ("logs" in servers(build(LOG_LEVEL=level))["library"]) is logged


@given(st.dictionaries(st.sampled_from(["LIBRARY_BROWSE", "TLS_INTERNAL"]), st.sampled_from(["true", "false"])))
def test_same_settings_give_the_same_configuration_every_time(environment: dict[str, str]) -> None:
    environment = {**environment, "TLS_NAME": "x.example"}
    assert json.dumps(build(**environment)) == json.dumps(build(**environment))


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=40).map(lambda text: "/" + text.replace("\0", "")))
def test_no_path_of_a_folder_can_change_what_is_served(folder: str) -> None:
    plain = servers(build(LIBRARY_BROWSE="true"))
    assert servers(build(LIBRARY_BROWSE="true", CLR_LIBRARY_DIR=folder, LIBRARY_NAME="{env.HOME}")) == plain
