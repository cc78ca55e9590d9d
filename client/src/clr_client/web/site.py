"""The web site of the library: Caddy with the configuration that the settings ask for, its certificate kept current."""

from __future__ import annotations

import asyncio
import logging
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from clr_client.errors import WebServerError
from clr_client.web import certificate
from clr_client.web.caddy import Caddy, hash_password
from clr_client.web.config import configuration, internal_root, subscription_url

if TYPE_CHECKING:
    from clr_client.settings import Settings
    from clr_client.web.certificate import Pair

log = logging.getLogger("clr.site")

POLL = 10.0
"""Seconds between looks at the certificate's files."""
REMIND = 86400.0
"""Seconds between warnings about a certificate that ends soon."""


class Site:
    """The library's web site. With TLS_CUSTOM_CERT a broken pair is never given to Caddy: the last good one stays."""

    def __init__(self, settings: Settings, program: str = "caddy") -> None:
        self.settings = settings
        self.caddy = Caddy(settings, program)
        self.pair: Pair | None = None
        self.problem = ""
        self._hash = ""
        self._stamp: object = None
        self._reminded = float("-inf")

    @property
    def url(self) -> str:
        """What goes into the subscription, as far as it is known here."""
        return subscription_url(self.settings, "<this host>")

    async def start(self) -> None:
        """Serve, or say why not; a certificate that is mended later is picked up by ``watch``.

        :raises WebServerError: the password cannot be hashed, or Caddy is missing.
        """
        settings = self.settings
        for folder in (settings.clr_library_dir, settings.clr_run_dir, settings.clr_data_dir):
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise WebServerError(f"{folder} cannot be made ({error.strerror})") from None
        if settings.library_password:
            if not settings.tls_name:
                log.warning("LIBRARY_PASSWORD crosses the network readable by anyone; TLS_NAME would encrypt it")
            self._hash = await hash_password(settings.library_password, self.caddy.program)
        await self._look()
        await self.caddy.start(self._configuration())
        if not self.caddy.healthy:
            return
        if self.problem:
            log.error("nothing is served until the certificate is mended")
        else:
            log.info("serving; the subscription URL is %s", self.url)
        if settings.tls_internal:
            log.info("the root certificate to trust is %s", internal_root(settings))

    async def refresh(self, *, force: bool = False) -> None:
        """Give Caddy the certificate anew if its files changed; ``force`` does so in any case. Raises nothing."""
        try:
            if await self._look(force=force) or force:
                await self.caddy.reload(self._configuration())
                log.info("the web server's configuration was loaded anew")
        except WebServerError as error:
            log.error("%s; what was served before is served on", error)

    async def watch(self) -> None:
        """Keep the certificate current, for ever."""
        while True:
            await asyncio.sleep(POLL)
            if self.settings.tls_custom_cert:
                await self.refresh()
                self._remind()

    async def stop(self) -> None:
        """Stop serving; see ``Caddy.stop``."""
        await self.caddy.stop()

    def _configuration(self) -> dict[str, object]:
        return configuration(self.settings, password_hash=self._hash, pair=self.pair)

    async def _look(self, *, force: bool = False) -> bool:
        """Read the pair if it changed, or is not usable yet. True when there is a new one."""
        folder = self.settings.clr_certs_dir
        if not self.settings.tls_custom_cert:
            return False
        seen = certificate.stamp(folder)
        if seen == self._stamp and not self.problem and not force:
            return False
        self._stamp = seen
        try:
            pair = await asyncio.to_thread(certificate.load_pair, folder, self.settings.tls_name, datetime.now(UTC))
        except WebServerError as error:
            if str(error) != self.problem:
                log.error("%s%s", error, "; the certificate in use stays" if self.pair else "")
            self.problem = str(error)
            return False
        self.problem = ""
        if pair == self.pair:
            return False
        for warning in pair.warnings:
            log.warning("%s", warning)
        log.info("using the certificate in %s, valid until %s UTC", folder, f"{pair.not_after:%Y-%m-%d %H:%M}")
        self.pair = pair
        self._reminded = float("-inf")
        return True

    def _remind(self) -> None:
        warning = self.pair.expiry(datetime.now(UTC)) if self.pair else ""
        if warning and time.monotonic() - self._reminded >= REMIND:
            self._reminded = time.monotonic()
            log.warning("%s", warning)
