"""Settings: every variable's default, what is allowed and what is refused, with one line that helps."""

from __future__ import annotations

import dataclasses
import os
import socket
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from clr_client import settings
from clr_client.errors import SettingsError
from clr_client.rates import Period, Rates
from clr_client.reporting.messages import KINDS
from clr_client.settings import Settings, load
from clr_client.values import DeleteLimit, Peer
from hypothesis import given
from hypothesis import strategies as st

FINGERPRINT = "SHA256:" + "a" * 43
PUBLIC_KEY = "ssh-ed25519 " + "A" * 68
RATES = {"1.5m": 1_572_864, "0": 0, "800K": 819_200, "500": 512_000, "0.5": 512, "1kib": 1024, "1mb": 1_000_000}
TABLE = {field.name.upper(): field.metadata for field in dataclasses.fields(Settings)}

GOOD: dict[str, list[tuple[str, Any]]] = {
    "TZ": [
        ("Europe/Berlin", ZoneInfo("Europe/Berlin")),
        (":UTC", ZoneInfo("UTC")),
        (" Asia/Tokyo ", ZoneInfo("Asia/Tokyo")),
    ],
    "SYNC_PEER": [
        ("", ()),
        ("clr.example.com", (("clr.example.com", None),)),
        ("192.0.2.7:2222", (("192.0.2.7", 2222),)),
        ("2001:db8::1", (("2001:db8::1", None),)),
        ("[2001:db8::1]", (("2001:db8::1", None),)),
        ("[2001:db8::1]:22", (("2001:db8::1", 22),)),
        ("[fe80::1%eth0]:22", (("fe80::1%eth0", 22),)),
        ("fe80::1%eth0", (("fe80::1%eth0", None),)),
        ("a, b:1\n c", (("a", None), ("b", 1), ("c", None))),
        ("my_server", (("my_server", None),)),
    ],
    "SYNC_PORT": [("1", 1), ("65535", 65535), (" 22 ", 22)],
    "SYNC_USER": [("mirror", "mirror")],
    "SYNC_HOST_KEY": [
        (FINGERPRINT, (FINGERPRINT,)),
        (f"{PUBLIC_KEY} root@host", (f"{PUBLIC_KEY} root@host",)),
        (f"{FINGERPRINT},\n{PUBLIC_KEY}", (FINGERPRINT, PUBLIC_KEY)),
    ],
    "SYNC_DELAY": [
        ("true", True),
        ("YES", True),
        ("1", True),
        ("on", True),
        ("off", False),
        ("No", False),
        ("0", False),
    ],
    "SYNC_DELAY_MAX_SECONDS": [("0", 0), ("604800", 604800)],
    "SYNC_MAX_BW": [
        *((text, Rates(text.lower(), rate)) for text, rate in RATES.items()),
        ("1m@8:00-18:00,0", Rates("1m@8:00-18:00,0", 0, (Period(1 << 20, 480, 1080),))),
        (
            " 1m@22:00-06:30, 0@12:00-24:00,2kb ",
            Rates("1m@22:00-06:30, 0@12:00-24:00,2kb", 2000, (Period(1 << 20, 1320, 390), Period(0, 720, 1440))),
        ),
    ],
    "SYNC_PARALLEL": [("1", 1), ("16", 16)],
    "SYNC_BLOCK_SIZE": [("auto", -1), ("Whole", 0), ("512", 512), ("131072", 131072)],
    "SYNC_INCLUDE": [("a*, b?", ("a*", "b?")), ("x\ny", ("x", "y")), (" , ", ())],
    "SYNC_EXCLUDE": [("[a-c]*", ("[a-c]*",))],
    "SYNC_ADD": [("false", False)],
    "SYNC_UPDATE": [("false", False)],
    "SYNC_DELETE": [("false", False)],
    "SYNC_MAX_DELETE": [("20", DeleteLimit(20, False)), ("0%", DeleteLimit(0, True)), ("100%", DeleteLimit(100, True))],
    "SYNC_RETRIES": [("0", 0), ("1000", 1000)],
    "SYNC_RETRY_DELAY": [("90", timedelta(seconds=90)), ("2m", timedelta(minutes=2))],
    "SYNC_TIMEOUT": [("15m", timedelta(minutes=15)), ("1H", timedelta(hours=1))],
    "SYNC_CONNECT_TIMEOUT": [("10s", timedelta(seconds=10))],
    "SYNC_WINDOW": [("2d", timedelta(days=2)), ("0", timedelta(0))],
    "LIBRARY_NAME": [("x", "x"), ("Vörlagen & Mehr", "Vörlagen & Mehr"), ("n" * 80, "n" * 80)],
    "LIBRARY_BROWSE": [("TRUE", True)],
    "LIBRARY_PASSWORD": [("", ""), ("pa ss$wörd", "pa ss$wörd"), ("x" * 72, "x" * 72)],
    "LIBRARY_KEEP": [("1", 1), ("1000", 1000)],
    "LIBRARY_GRACE": [("0", timedelta(0))],
    "LIBRARY_HREFS": [("plain", "plain"), ("Tree", "tree")],
    "LIBRARY_GENERATION_NUM": [("item", "item")],
    "TLS_NAME": [
        ("Library.Example.COM", "library.example.com"),
        ("2001:db8::1", "2001:db8::1"),
        ("localhost", "localhost"),
    ],
    "HTTP_PORT": [("8080", 8080)],
    "HTTPS_PORT": [("8443", 8443)],
    "METRICS_PORT": [("0", 0), ("9101", 9101)],
    "SITE_NAME": [("Berlin-Mitte Ü", "Berlin-Mitte Ü")],
    "NOTIFY_URLS": [
        ("json://a/b", ("json://a/b",)),
        (
            " mailto://u:p@h?to=a,b, slack://x/y/z\n\tjsons://q;ntfy://t ,",
            ("mailto://u:p@h?to=a,b", "slack://x/y/z", "jsons://q", "ntfy://t"),
        ),
    ],
    "NOTIFY_EVENTS": [("held, Failure", ("failure", "held")), ("stale", ("stale",)), ("all", KINDS)],
    "NOTIFY_STALE_AFTER": [("Auto", None), ("3d", timedelta(days=3)), ("0", timedelta(0))],
    "HEARTBEAT_URL": [(url, url.strip()) for url in ("https://hc.example.com/ping/4f", " http://[::1]:8000/x?y=z ")],
    "LOG_FORMAT": [("json", "json")],
    "LOG_LEVEL": [("DEBUG", "debug")],
    "CLR_LIBRARY_DIR": [("/srv/x y", Path("/srv/x y"))],
}

BAD: dict[str, list[str]] = {
    "TZ": ["Mars/Olympus", "../etc/passwd", "Europe", "\x1b[31m", "/etc/passwd"],
    "SYNC_PEER": [
        "user@host", "host:", "host:0", "host:65536", "-oProxyCommand=x", "a b@c", "http://host", "[::1", "[host]:22",
        "host/path", "fe80::1%\x1b[0m", "ho$t", "[2001:db8::1]:99999", "host:22x", "host.-",
    ],
    "SYNC_PORT": ["0", "65536", "-1", "ssh", "22.0", "1e3"],
    "SYNC_USER": ["u" * 33, "a\nb"],
    "SYNC_HOST_KEY": ["SHA256:short", "yes", "ssh-ed25519", "host ssh-ed25519 AAAA", "MD5:00:11"],
    "SYNC_SCHEDULE": ["0 0 31 2 *", "0 0 0 * * *", "garbage", "61 * * * *", "@never"],
    "VERIFY_SCHEDULE": ["0 0 31 2 *", "0 0 0 * * *", "off", "never"],
    "SYNC_DELAY": ["maybe", "2", "tru"],
    "SYNC_DELAY_MAX_SECONDS": ["-1", "604801", "6h", "x"],
    "SYNC_MAX_BW": ["abc", "-1", "1.5.5m", "1 m", "10mbit", "1t", "0.4", "100b", "0.1k", "1m@8-18,0", "1m@08:00-18:00",
        "1m@08:00-24:01,0", "1m@08:60-09:00,0", "1m@08:00-08:00,0", "1m@24:00-01:00,0", "0,1m@08:00-18:00", "1m,0"],
    "SYNC_PARALLEL": ["0", "17", "all"],
    "SYNC_BLOCK_SIZE": ["0", "511", "131073", "4k", "-1"],
    "SYNC_ADD": ["never"],
    "SYNC_UPDATE": ["never"],
    "SYNC_DELETE": ["never"],
    "SYNC_MAX_DELETE": ["101%", "-1", "half", "50 %", "1.5"],
    "SYNC_RETRIES": ["-1", "1001", "x"],
    "SYNC_RETRY_DELAY": ["-1", "1.5m", "soon", "1w"],
    "SYNC_TIMEOUT": ["x", "999999999d"],
    "SYNC_CONNECT_TIMEOUT": ["x", "3651d"],
    "SYNC_WINDOW": ["x", "-1h"],
    "LIBRARY_NAME": ["n" * 81, "a\x1b[31mb", "a\nb", "\udcff"],
    "LIBRARY_BROWSE": ["browse"],
    "LIBRARY_PASSWORD": ["x" * 73, "ü" * 37, "a\tb", "\udcff"],
    "LIBRARY_KEEP": ["0", "1001", "all"],
    "LIBRARY_GRACE": ["x"],
    "LIBRARY_HREFS": ["flat"],
    "LIBRARY_GENERATION_NUM": ["none"],
    "TLS_NAME": ["https://x", "x/y", "x:443", "-x", "a_b", "x..y", "*.example.com"],
    "TLS_CUSTOM_CERT": ["cert.pem"],
    "TLS_INTERNAL": ["ca"],
    "HTTP_PORT": ["0"],
    "HTTPS_PORT": ["70000"],
    "METRICS_PORT": ["70000", "-1", "none"],
    "SITE_NAME": ["a\nb", "\x1b[0m", "x" * 81],
    "NOTIFY_URLS": ["garbage", "json://a, garbage", "garbage json://a", "://x", "json://", "json://a\x1b[0m"],
    "NOTIFY_EVENTS": [",", "failures", "all,held", "failure held"],
    "NOTIFY_STALE_AFTER": ["never", "-1", "2w"],
    "HEARTBEAT_URL": ["hc.example.com", "ftp://x/y", "https://", "https://x:y/", "https://x/\x1b", "https://x/a b",
        "file:///etc/passwd", "http://[::1/"],
    "LOG_FORMAT": ["xml"],
    "LOG_LEVEL": ["loud"],
    "CLR_LIBRARY_DIR": ["library", "./x"],
    "CLR_KEYS_DIR": ["x"],
    "CLR_CERTS_DIR": ["x"],
    "CLR_DATA_DIR": ["x"],
    "CLR_RUN_DIR": ["x"],
}  # fmt: skip


def test_every_setting_has_bad_values_in_this_test() -> None:
    anything_goes = {"SYNC_INCLUDE", "SYNC_EXCLUDE"}
    assert set(BAD) | anything_goes == set(TABLE)


def test_an_empty_environment_gives_the_defaults_of_the_original() -> None:
    found, warnings = load({})
    assert warnings == []
    assert found.tz == ZoneInfo("UTC")
    assert (found.sync_port, str(found.sync_schedule), str(found.sync_max_bw)) == (2222, "0 21 * * 5", "0")
    assert (found.sync_delay, found.sync_delay_max_seconds) == (False, 21600)
    assert (found.tls_name, found.tls_custom_cert, found.library_name, found.library_browse) == (
        "",
        False,
        "Library",
        False,
    )
    assert found.clr_library_dir == Path("/syncer/library")
    assert found.clr_keys_dir == Path("/syncer/.ssh")
    assert found.clr_certs_dir == Path("/etc/caddycerts")


@pytest.mark.parametrize(
    ("variable", "text", "value"), [(name, *pair) for name, pairs in GOOD.items() for pair in pairs]
)
def test_a_good_value_is_understood(variable: str, text: str, value: object) -> None:
    found, warnings = load({variable: text})
    assert getattr(found, variable.lower()) == value
    assert warnings == []


@pytest.mark.parametrize(("variable", "text"), [(name, text) for name, texts in BAD.items() for text in texts])
def test_a_bad_value_is_refused_in_one_line_with_name_value_and_what_is_allowed(variable: str, text: str) -> None:
    with pytest.raises(SettingsError) as caught:
        load({variable: text})
    message = str(caught.value)
    shown = "***" if variable in {"LIBRARY_PASSWORD", "NOTIFY_URLS", "HEARTBEAT_URL"} else repr(text)
    assert message.startswith(f"{variable}={shown} cannot be used; allowed: {TABLE[variable]['type'].allowed}")
    assert message.isprintable()
    assert caught.value.exit_code == 3


@pytest.mark.parametrize("variable", list(TABLE))
def test_an_empty_value_stands_for_the_default(variable: str) -> None:
    assert load({variable: ""}) == load({})


@pytest.mark.parametrize("variable", list(TABLE))
def test_each_default_is_itself_a_value_that_is_allowed(variable: str) -> None:
    assert load({variable: TABLE[variable]["default"]}) == load({})


def test_a_bad_schedule_is_answered_with_an_example() -> None:
    with pytest.raises(SettingsError, match=r"0 21 \* \* 5 is Fridays at 21:00"):
        load({"SYNC_SCHEDULE": "garbage"})


def test_clr_ends_with_code_3_and_one_line_for_a_bad_value() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "clr_client", "schedule"],
        env={**os.environ, "SYNC_PORT": "many\x1b[31m"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 3
    assert done.stdout == ""
    assert done.stderr == "clr: SYNC_PORT='many\\x1b[31m' cannot be used; allowed: a whole number from 1 to 65535\n"


@pytest.mark.parametrize("command", ["sync", "plan"])
def test_clr_without_a_server_to_pull_from_ends_with_code_3_and_one_line(command: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "clr_client", command],
        env={"PATH": os.environ["PATH"], "CLR_LIBRARY_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 3
    assert done.stderr.startswith("clr: SYNC_PEER is not set; allowed: one or more host names")
    assert done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_password_is_never_shown_in_an_error_or_a_setting_error_line() -> None:
    with pytest.raises(SettingsError) as caught:
        load({"LIBRARY_PASSWORD": "hunter2\t"})
    assert "hunter2" not in str(caught.value)


def test_a_secret_may_come_from_a_file_and_its_line_end_does_not_belong_to_it(tmp_path: Path) -> None:
    for number, content in enumerate((b" s3cret \n", b" s3cret \r\n", b"\xef\xbb\xbf s3cret ")):
        file = tmp_path / str(number)
        file.write_bytes(content)
        found, warnings = load({"LIBRARY_PASSWORD_FILE": str(file)})
        assert found.library_password == " s3cret "
        assert warnings == []


def test_a_host_key_may_come_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "pins"
    file.write_text(f"{FINGERPRINT}\n{PUBLIC_KEY} root@host\n")
    assert load({"SYNC_HOST_KEY_FILE": str(file)})[0].sync_host_key == (FINGERPRINT, f"{PUBLIC_KEY} root@host")


def test_a_secret_and_its_file_both_set_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "password"
    file.write_text("x")
    with pytest.raises(SettingsError, match="LIBRARY_PASSWORD and LIBRARY_PASSWORD_FILE are both set"):
        load({"LIBRARY_PASSWORD": "x", "LIBRARY_PASSWORD_FILE": str(file)})


def test_a_blank_secret_beside_a_file_or_a_blank_file_beside_a_secret_does_not_count(tmp_path: Path) -> None:
    file = tmp_path / "password"
    file.write_text("x")
    assert load({"LIBRARY_PASSWORD": "", "LIBRARY_PASSWORD_FILE": str(file)})[0].library_password == "x"
    assert load({"LIBRARY_PASSWORD": "y", "LIBRARY_PASSWORD_FILE": ""})[0].library_password == "y"


@pytest.mark.parametrize("content", [None, b"\xff\xfe", b"", b"\n"], ids=["missing", "binary", "empty", "blank"])
def test_a_secret_file_that_holds_no_secret_is_refused_and_never_means_no_password(
    tmp_path: Path, content: bytes | None
) -> None:
    file = tmp_path / "password"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(SettingsError, match=r"LIBRARY_PASSWORD_FILE=.*allowed: ") as caught:
        load({"LIBRARY_PASSWORD_FILE": str(file)})
    assert str(caught.value).isprintable()


def test_a_folder_or_a_path_with_a_null_byte_is_no_secret_file(tmp_path: Path) -> None:
    for path in (str(tmp_path), "a\0b"):
        with pytest.raises(SettingsError, match="cannot be read"):
            load({"LIBRARY_PASSWORD_FILE": path})


def test_the_originals_name_of_the_bandwidth_limit_still_works_with_a_warning() -> None:
    found, warnings = load({"SYNC_MAX_KBPS": "500"})
    assert str(found.sync_max_bw) == "500"
    assert warnings == ["SYNC_MAX_KBPS is an old name; rename it to SYNC_MAX_BW"]


def test_the_new_name_wins_over_the_old_one_unless_it_is_blank() -> None:
    found, warnings = load({"SYNC_MAX_KBPS": "500", "SYNC_MAX_BW": "1m"})
    assert str(found.sync_max_bw) == "1m"
    assert warnings == ["SYNC_MAX_KBPS is ignored, because SYNC_MAX_BW is set"]
    assert load({"SYNC_MAX_KBPS": "500", "SYNC_MAX_BW": ""})[0].sync_max_bw.text == "500"


@pytest.mark.parametrize(
    ("name", "likely"),
    [
        ("SYNC_SHEDULE", "SYNC_SCHEDULE"),
        ("SYNC_PEERS", "SYNC_PEER"),
        ("TLS_CUSTOM_CERTS", "TLS_CUSTOM_CERT"),
        ("LIBRARY_PASWORD_FILE", "LIBRARY_PASSWORD_FILE"),
        ("LIBRARY_BROWSER", "LIBRARY_BROWSE"),
    ],
)
def test_a_misspelt_setting_is_warned_about_with_the_likely_name(name: str, likely: str) -> None:
    assert load({name: "x"})[1] == [f"{name} is not a setting of this program; did you mean {likely}?"]


def test_an_unlikely_name_is_warned_about_without_a_guess_and_foreign_variables_are_left_alone() -> None:
    assert load({"SYNC_QQQQQQQQQQQQQQQQ": "x"})[1] == ["SYNC_QQQQQQQQQQQQQQQQ is not a setting of this program"]
    assert load({"HOME": "/", "SYNCER_UID": "5", "PATH": "x", "LOGNAME": "x"})[1] == []


@pytest.mark.parametrize(
    ("environment", "text"),
    [
        ({"TLS_CUSTOM_CERT": "true"}, "TLS_CUSTOM_CERT=true needs TLS_NAME"),
        ({"TLS_INTERNAL": "true"}, "TLS_INTERNAL=true needs TLS_NAME"),
        ({"TLS_INTERNAL": "true", "TLS_CUSTOM_CERT": "true", "TLS_NAME": "x"}, "exclude each other"),
        ({"TLS_NAME": "x", "HTTP_PORT": "443"}, "HTTP_PORT and HTTPS_PORT are both 443"),
        ({"METRICS_PORT": "80"}, "METRICS_PORT=80 is the library's"),
        ({"TLS_NAME": "x", "METRICS_PORT": "443"}, "METRICS_PORT=443 is the library's"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(environment: dict[str, str], text: str) -> None:
    with pytest.raises(SettingsError, match=text) as caught:
        load(environment)
    assert caught.value.exit_code == 3


def test_servers_without_a_port_of_their_own_get_the_common_one() -> None:
    found, _ = load({"SYNC_PEER": "a, [2001:db8::1]:22, b:1", "SYNC_PORT": "31337"})
    assert found.peers == (Peer("a", 31337), Peer("2001:db8::1", 22), Peer("b", 1))
    assert [str(peer) for peer in found.peers] == ["a:31337", "[2001:db8::1]:22", "b:1"]


@pytest.mark.parametrize("text", ["", " ", ",", " ,\n"])
def test_a_sync_needs_a_server(text: str) -> None:
    with pytest.raises(SettingsError, match="SYNC_PEER is not set; allowed: one or more host names"):
        load({"SYNC_PEER": text})[0].require_peer()


@given(st.integers(0, 100), st.integers(0, 10_000), st.integers(0, 10_000))
def test_a_percentage_allows_removals_up_to_and_exactly_at_the_limit(
    percent: int, removed: int, published: int
) -> None:
    allowed = DeleteLimit(percent, percent=True).allows(removed, published)
    assert allowed == (removed <= 1 or removed / max(published, 1) <= percent / 100 + 1e-12)


def test_a_limit_is_met_exactly_and_one_more_is_too_many() -> None:
    assert DeleteLimit(50, percent=True).allows(5, 10)
    assert not DeleteLimit(50, percent=True).allows(6, 10)
    assert DeleteLimit(3, percent=False).allows(3, 1000)
    assert not DeleteLimit(3, percent=False).allows(4, 1000)


@pytest.mark.parametrize("limit", [DeleteLimit(0, percent=True), DeleteLimit(0, percent=False)])
def test_one_item_may_always_go(limit: DeleteLimit) -> None:
    assert limit.allows(1, 1)
    assert limit.allows(0, 0)
    assert not limit.allows(2, 100)


@given(st.dictionaries(st.sampled_from(sorted(TABLE)), st.text(max_size=30), max_size=3))
def test_any_environment_gives_settings_or_one_printable_line(environment: dict[str, str]) -> None:
    try:
        found, _ = load(environment)
    except SettingsError as error:
        assert "\n" not in str(error)
    else:
        assert isinstance(found, settings.Settings)


def test_the_dot_at_the_end_of_a_complete_host_name_is_left_out() -> None:
    assert load({"TLS_NAME": "library.example.com."})[0].tls_name == "library.example.com"


def test_a_survey_says_everything_that_is_wrong_and_keeps_what_can_be_used() -> None:
    found = settings.survey(
        {"SYNC_PEER": "a", "SYNC_PORT": "ssh", "SYNC_SCHEDULE": "often", "TLS_INTERNAL": "true", "SYNC_PERR": "b"}
    )
    told = "\n".join(map(str, found.errors))
    assert len(found.errors) == 3
    assert "SYNC_PORT='ssh'" in told and "SYNC_SCHEDULE='often'" in told and "TLS_NAME" in told
    assert found.settings.sync_peer == (("a", None),)
    assert {"sync_port", "sync_schedule"} <= found.broken
    with pytest.raises(AttributeError, match="sync_port"):
        _ = found.settings.peers
    assert "did you mean SYNC_PEER?" in found.warnings[0]


def test_a_survey_of_good_settings_is_what_load_returns() -> None:
    environ = {"SYNC_PEER": "a", "TLS_NAME": "x.example"}
    found = settings.survey(environ)
    assert (found.settings, list(found.warnings)) == load(environ)
    assert (found.errors, found.broken) == ((), frozenset())


def test_a_site_is_called_by_its_name_or_that_of_its_certificate_or_its_hosts() -> None:
    assert load({"SITE_NAME": "berlin", "TLS_NAME": "x.example.com"})[0].site == "berlin"
    assert load({"TLS_NAME": "x.example.com"})[0].site == "x.example.com"
    assert load({})[0].site == socket.gethostname()
