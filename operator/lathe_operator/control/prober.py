"""Asks servers which artifact they serve, by the Triton HTTP API."""

from dataclasses import dataclass
from typing import Final

import aiohttp

from lathe_api.wiring import DIGEST_PARAMETER
from lathe_operator.plan.observed import dig
from lathe_operator.settings import Settings

_SECONDS: Final = 2.0
_OK: Final = 200


@dataclass(frozen=True)
class HttpProber:
    """A `Prober` over the servers' Services."""

    session: aiohttp.ClientSession
    settings: Settings

    async def digest(self, namespace: str, inference_service: str, model: str) -> str | None:
        """See `Prober`."""
        base = self.settings.server_url.format(
            service=f"{inference_service}-predictor", namespace=namespace, domain=self.settings.cluster_domain
        )
        timeout = aiohttp.ClientTimeout(total=_SECONDS)
        try:
            async with self.session.get(f"{base}/v2/models/{model}/config", timeout=timeout) as answer:
                if answer.status != _OK:
                    return None
                config = await answer.json(content_type=None)
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError):
            return None
        found = dig(config, "parameters", DIGEST_PARAMETER, "string_value")
        return None if found is None else str(found)
