"""Caddy's configuration, as JSON that 2.6 (Debian 12) and 2.11 (Debian 13) both load.

What is served is ``current`` on the library volume, a link that one rename replaces; Caddy follows it anew for every
request. Caddy runs in the library's folder and is given relative paths, in which no character means anything to it.
"""

from __future__ import annotations

import ipaddress
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from clr_client.settings import Settings
    from clr_client.web.certificate import Pair

USER = "vcsp"  # the only user name that vSphere sends
ROOT = "current"
LISTING = Path(__file__).with_name("listing.html")
ITEM_TREES = ["/_items", "/_items/*"]
MANIFESTS = ["/lib.json", "/items.json"]
# Nothing from the server may run as a script in a browser that visits this site.
TYPES = {
    "application/json": ["*.json"],
    "application/xml": ["*.ovf"],
    "text/plain; charset=utf-8": ["*.mf", "*.cert", "*.txt", "*.md", "*.sha256"],
}
SANDBOX = "sandbox; default-src 'none'"
PAGE_POLICY = (
    "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none';"
    " form-action 'none'; frame-ancestors 'none'"
)
LISTING_POLICY = (
    "default-src 'none'; style-src 'self'; img-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
PLAIN_TEXT = "text/plain; charset=utf-8"
NOT_PUBLISHED = json.dumps({"status": "TRANSFERRING", "progress": 0, "message": ""}) + "\n"
RETRY_AFTER = "30"
CONDITIONS = ["If-None-Match", "If-Modified-Since", "If-Match", "If-Unmodified-Since", "If-Range", "Range"]
HEADER_TIMEOUT = "15s"
# The own CA's certificates live long, because vSphere pins them by thumbprint: each renewal must be accepted by hand.
CA_NAME = "Content Library Rsync"
INTERNAL_LIFETIME = "26280h"  # three years; Caddy renews after two

Route = dict[str, Any]


def site_folder(settings: Settings) -> Path:
    """Where the site's page, status and metrics lie: all that is served of CLR_RUN_DIR."""
    return settings.clr_run_dir / "site"


def admin_socket(settings: Settings) -> Path:
    """The unix socket that Caddy takes new configurations from."""
    return settings.clr_run_dir / "caddy.sock"


def internal_root(settings: Settings) -> Path:
    """Where Caddy keeps the root certificate of its own CA."""
    return settings.clr_data_dir / "caddy" / "pki" / "authorities" / "local" / "root.crt"


def subscription_url(settings: Settings, host: str = "") -> str:
    """Return the address that a subscription needs; empty when no name is known, neither as TLS_NAME nor ``host``."""
    scheme, port, usual = "http", settings.http_port, 80
    if settings.tls_name:
        scheme, port, usual = "https", settings.https_port, 443
    name = settings.tls_name or host
    shown = f"[{name}]" if ":" in name else name
    return f"{scheme}://{shown}{'' if port == usual else f':{port}'}/lib.json" if name else ""


def certificate_files(settings: Settings) -> tuple[Path, Path] | None:
    """Where the site's certificate and its key lie; None without HTTPS, or while Caddy has got none yet.

    Caddy keeps what it obtained below a folder for each issuer; the newest counts.
    """
    if not settings.tls_name:
        return None
    if settings.tls_custom_cert:
        return settings.clr_certs_dir / "cert.pem", settings.clr_certs_dir / "key.pem"
    name = settings.tls_name.lower().replace(":", "-")
    issuer = "local" if settings.tls_internal else "*-*"
    found = (settings.clr_data_dir / "caddy" / "certificates").glob(f"{issuer}/{name}/{name}.crt")
    newest = max(found, key=lambda path: path.stat().st_mtime, default=None)
    return (newest, newest.with_suffix(".key")) if newest else None


def configuration(settings: Settings, *, password_hash: str = "", pair: Pair | None = None) -> dict[str, Any]:
    """Build the whole configuration of the web server. Pure.

    :param password_hash: bcrypt of the library's password; empty for a library without one.
    :param pair: certificate and key, for TLS_CUSTOM_CERT. Without them HTTPS is not offered at all, and HTTP says so.
    """
    debug = settings.log_level == "debug"
    apps: dict[str, Any] = {"http": _http(settings, _library(settings, password_hash), pair, debug=debug)}
    if settings.tls_name:
        apps["tls"] = _tls(settings, pair)
        # Caddy makes its CA also for ACME and a name that is not public; left alone it would have the system trust it.
        apps["pki"] = {"certificate_authorities": {"local": {"name": CA_NAME, "install_trust": False}}}
    return {
        "admin": {"listen": f"unix/{admin_socket(settings)}", "config": {"persist": False}},
        "logging": {
            "logs": {
                "default": {
                    "writer": {"output": "stderr"},
                    "encoder": {"format": "json", "time_format": "rfc3339"},
                    "level": "DEBUG" if debug else "INFO",
                }
            }
        },
        "storage": {"module": "file_system", "root": str(settings.clr_data_dir / "caddy")},
        "apps": apps,
    }


def _http(settings: Settings, library: list[Route], pair: Pair | None, *, debug: bool) -> dict[str, Any]:
    def server(port: int, routes: list[Route]) -> dict[str, Any]:
        return {
            "listen": [f":{port}"],
            "routes": routes,
            "errors": {"routes": [_errors()]},
            "automatic_https": {"disable": True},
            # HTTP/2 comes with TLS only. But where it is not allowed, Caddy 2.11 wraps each connection to keep it out,
            # and then sends files by reading and writing them instead of by sendfile(2).
            "protocols": ["h1", "h2"],
            # No limit on reading or writing a whole request: a disk takes as long as the line needs.
            "read_header_timeout": HEADER_TIMEOUT,
            "idle_timeout": "2m",
            "max_header_bytes": 32768,
            **({"logs": {}} if debug else {}),
        }

    # No grace_period: it would also cut downloads when a configuration is replaced. Stopping has a deadline of its own.
    http: dict[str, Any] = {"http_port": settings.http_port, "https_port": settings.https_port}
    if not settings.tls_name:
        http["servers"] = {"library": server(settings.http_port, library)}
    elif settings.tls_custom_cert and pair is None:
        http["servers"] = {"closed": server(settings.http_port, _closed())}
    else:
        policy: dict[str, Any] = {"default_sni": settings.tls_name}
        if settings.tls_custom_cert:
            policy = {"certificate_selection": {"any_tag": ["site"]}}
        https = server(settings.https_port, library)
        https["tls_connection_policies"] = [policy]
        http["servers"] = {"redirect": server(settings.http_port, _redirect(settings)), "library": https}
    if settings.metrics_port:
        http["servers"]["metrics"] = server(settings.metrics_port, _metrics_alone(settings))
    return http


def _tls(settings: Settings, pair: Pair | None) -> dict[str, Any]:
    common = {"disable_ocsp_stapling": True}  # vSphere does not ask, and Let's Encrypt no longer answers
    if settings.tls_custom_cert:
        if pair is None:
            return {}
        return {
            **common,
            "certificates": {"load_pem": [{"certificate": pair.certificate, "key": pair.key, "tags": ["site"]}]},
        }
    issuer: dict[str, Any] = {"module": "acme"}
    if settings.tls_internal:
        issuer = {"module": "internal", "ca": "local", "lifetime": INTERNAL_LIFETIME, "sign_with_root": True}
    return {
        **common,
        "certificates": {"automate": [settings.tls_name]},
        "automation": {"policies": [{"subjects": [settings.tls_name], "issuers": [issuer]}]},
    }


def _library(settings: Settings, password_hash: str) -> list[Route]:
    """The routes of the library itself, in the order in which they are tried."""
    routes = _hygiene()
    if password_hash:
        routes.append({"handle": [_authentication(password_hash)]})
    return [
        *routes,
        # Caddy matches against the decoded and cleaned path, so no other spelling gets past this. No published name
        # has control characters, and Caddy 2.6 answers 500 to NUL.
        {
            "match": [{"path_regexp": {"pattern": r"(^|/)\.|[\x00-\x1f\x7f]"}}],
            "handle": [_error(404)],
            "terminal": True,
        },
        # First what is asked for most: Caddy 2.11 looks at the disk for the matchers below, whatever the path is
        {
            "match": [{"path": ITEM_TREES}],
            "handle": [{"handler": "subroute", "routes": [*_kinds(), {"handle": [_files()]}]}],
            "terminal": True,
        },
        *_page(settings),
        _not_published(),
        *(_listing() if settings.library_browse else []),
        *_kinds(),
        {
            "match": [{"path": MANIFESTS}],
            # Caddy 2.6 tells two manifests of one second and one size apart by nothing, so they are always sent whole:
            # no 304, and no range that continues another generation's manifest.
            "handle": [
                _headers(
                    request={"delete": CONDITIONS},
                    response={
                        "set": {"Cache-Control": ["no-cache"]},
                        "delete": ["Etag", "Accept-Ranges"],
                        "deferred": True,
                    },
                ),
                _files(),
            ],
            "terminal": True,
        },
        # Under a readable name the next version may be the older file, which If-Modified-Since takes for the same.
        {
            "handle": [
                _headers(
                    request={"delete": ["If-None-Match", "If-Modified-Since"]},
                    response={"set": {"Cache-Control": ["no-cache"]}},
                ),
                _files(),
            ]
        },
    ]


def _hygiene() -> list[Route]:
    return [
        {
            "handle": [
                _headers(response={"delete": ["Server"], "set": {"X-Content-Type-Options": ["nosniff"]}}),
            ]
        },
        {
            "match": [{"not": [{"method": ["GET", "HEAD"]}]}],
            "handle": [_text(405, "Only GET and HEAD are served here.", {"Allow": ["GET, HEAD"]})],
            "terminal": True,
        },
    ]


def _kinds() -> list[Route]:
    """What a browser is to make of a file, by its name; and that a name with a slash at its end is none."""
    return [
        # Caddy 2.11 serves a file under its name with a slash as well
        {"match": [{"path": ["*/"]}], "handle": [_error(404)], "terminal": True},
        {"handle": [_set({"Content-Type": ["application/octet-stream"], "Content-Security-Policy": [SANDBOX]})]},
        *(
            {"match": [{"path": suffixes}], "handle": [_set({"Content-Type": [type_]})]}
            for type_, suffixes in TYPES.items()
        ),
    ]


def _authentication(password_hash: str) -> Route:
    basic = {
        "accounts": [{"username": USER, "password": password_hash}],
        "hash": {"algorithm": "bcrypt"},
        "hash_cache": {},  # bcrypt takes a second on purpose; a subscriber sends the password with every request
        "realm": "library",
    }
    return {"handler": "authentication", "providers": {"http_basic": basic}}


def _not_published() -> Route:
    """503 with the progress of the first sync, until there is a library.

    Source: Content Subscription Endpoint Specification, "Responses".
    """
    waiting = {"Retry-After": [RETRY_AFTER], "Cache-Control": ["no-store"], "Content-Type": ["application/json"]}
    progress = {
        "match": [{"file": {"root": ".", "try_files": ["/progress.json"]}}],
        "handle": [
            _headers(
                request={"delete": CONDITIONS},
                response={"delete": ["Etag", "Last-Modified", "Accept-Ranges"], "deferred": True},
            ),
            {"handler": "rewrite", "uri": "/progress.json"},
            {**_files(), "root": ".", "status_code": "503"},
        ],
        "terminal": True,
    }
    return {
        "match": [{"path": MANIFESTS, "not": [{"file": {"root": ROOT, "try_files": ["/lib.json"]}}]}],
        "handle": [
            _set(waiting),
            _subroute(
                [
                    progress,
                    {"handle": [{"handler": "static_response", "status_code": "503", "body": NOT_PUBLISHED}]},
                ]
            ),
        ],
        "terminal": True,
    }


def _listing() -> list[Route]:
    """Folders, for people. ``hide`` looks at every part of the absolute path, so it gets no pattern for dotfiles."""
    page = {
        "Cache-Control": ["no-cache"],
        "Content-Security-Policy": [LISTING_POLICY],
    }
    request = {"delete": ["If-None-Match", "If-Modified-Since", "Accept"]}
    return [
        {
            "match": [{"path": ["*/"], **_folder()}],
            "handle": [
                _headers(request=request, response={"set": page}),
                {**_files(), "hide": ["_items", ".state.json"], "browse": {"template_file": str(LISTING)}},
            ],
            "terminal": True,
        },
        {
            # Caddy's own redirect forgets to quote the name. The URI must not start with //, which names a host.
            "match": [
                {
                    **_folder(),
                    "vars_regexp": {"{http.request.uri}": {"pattern": r"^/[^/\\?][^?]*$"}},
                }
            ],
            "handle": [_text(308, "", {"Location": ["{http.request.uri}/"]})],
            "terminal": True,
        },
    ]


def _folder() -> dict[str, Any]:
    """Match a folder. The slash asks for folders only."""
    return {"file": {"root": ROOT, "try_files": ["{http.request.uri.path}/"]}}


def _page(settings: Settings) -> list[Route]:
    """The site's page and what belongs to it, below a name that no item has; nothing else is served there."""
    index = [_fresh(settings, "text/html; charset=utf-8", "/index.html")]
    named = {
        type_: [_fresh(settings, type_, "/{http.regexp.clr.1}")]
        for type_ in ("text/css; charset=utf-8", "text/javascript; charset=utf-8", "image/svg+xml", "application/json")
    }
    suffixes = ("css", "js", "svg", "json")
    routes: list[Route] = [
        {"match": [_exactly("/_clr")], "handle": [_text(308, "", {"Location": ["/_clr/"]})], "terminal": True},
        {"match": [_exactly("/_clr/")], "handle": index, "terminal": True},
        {"match": [_exactly("/_clr/metrics")], "handle": [_metrics(settings)], "terminal": True},
        *(
            {
                "match": [{"path_regexp": {"name": "clr", "pattern": rf"^/_clr/([a-z0-9-]+\.{suffix})$"}}],
                "handle": handle,
                "terminal": True,
            }
            for suffix, handle in zip(suffixes, named.values(), strict=True)
        ),
        {"handle": [_error(404)]},
    ]
    page = {"match": [{"path": ["/_clr", "/_clr/*"]}], "handle": [_subroute(routes)], "terminal": True}
    top = {"match": [_exactly("/")], "handle": index, "terminal": True}
    return [page] if settings.library_browse else [page, top]


def _metrics_alone(settings: Settings) -> list[Route]:
    """What METRICS_PORT answers."""
    return [
        *_hygiene(),
        {"match": [_exactly("/metrics")], "handle": [_metrics(settings)], "terminal": True},
        {"match": [_exactly("/healthz")], "handle": [_text(200, "ok", {})], "terminal": True},
        {"handle": [_error(404)]},
    ]


def _metrics(settings: Settings) -> Route:
    return _fresh(settings, "text/plain; version=0.0.4; charset=utf-8", "/metrics")


def _fresh(settings: Settings, type_: str, uri: str) -> Route:
    """Serve a file of the site's own, always whole: Caddy 2.6 takes two of one second and one size for the same."""
    headers = {
        "Content-Type": [type_],
        "Cache-Control": ["no-cache"],
        "Content-Security-Policy": [PAGE_POLICY],
        "Referrer-Policy": ["no-referrer"],
    }
    response = {"set": headers, "delete": ["Etag", "Last-Modified", "Accept-Ranges"], "deferred": True}
    return _subroute(
        [
            {
                "handle": [
                    _headers(request={"delete": CONDITIONS}, response=response),
                    {"handler": "rewrite", "uri": uri},
                    {**_files(), "root": str(site_folder(settings))},
                ]
            }
        ]
    )


def _exactly(path: str) -> dict[str, Any]:
    return {"path_regexp": {"pattern": f"^{path}$"}}


def _subroute(routes: list[Route]) -> Route:
    return {"handler": "subroute", "routes": routes}


def _redirect(settings: Settings) -> list[Route]:
    try:
        address = ipaddress.ip_address(settings.tls_name)
    except ValueError:
        host = settings.tls_name
    else:
        host = f"[{address}]" if address.version == 6 else str(address)
    port = "" if settings.https_port == 443 else f":{settings.https_port}"
    location = f"https://{host}{port}{{http.request.uri}}"
    return [*_hygiene(), {"handle": [_text(308, "", {"Location": [location]})]}]


def _closed() -> list[Route]:
    text = "The certificate of this site cannot be used; the client's log says why."
    return [*_hygiene(), {"handle": [_text(503, text, {"Retry-After": [RETRY_AFTER]})]}]


def _errors() -> Route:
    """Errors say no more than their number."""
    return {"handle": [_text("{http.error.status_code}", "{http.error.status_code} {http.error.status_text}", {})]}


def _files() -> Route:
    # No index: a file named index.html is a file of a template, not this site's page.
    return {"handler": "file_server", "root": ROOT, "index_names": [], "canonical_uris": False}


def _text(status: int | str, text: str, headers: dict[str, list[str]]) -> Route:
    headers = {"Content-Type": [PLAIN_TEXT], "Cache-Control": ["no-store"], **headers} if text else headers
    body = {"body": f"{text}\n"} if text else {}
    return {"handler": "static_response", "status_code": str(status), "headers": headers, **body}


def _error(status: int) -> Route:
    return {"handler": "error", "status_code": str(status)}


def _set(headers: dict[str, list[str]]) -> Route:
    return _headers(response={"set": headers})


def _headers(**operations: dict[str, Any]) -> Route:
    return {"handler": "headers", **operations}
