"""What a proxy's door has to know of the settings: no key, since Ray shows its runtime environments
(launcher and Serve's proxy)."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass

from gpupool.ray_pool.names import DOOR_VARIABLE
from gpupool.settings import Settings


@dataclass(frozen=True, slots=True)
class DoorRules:
    """Made by the launcher; frozen."""

    max_body_bytes: int
    read_timeout_s: float
    max_wait_s: float
    cors_origins: tuple[str, ...]
    has_keys: bool
    secret: str
    """The launcher's, which alone may say that the pool drains."""

    @classmethod
    def of_settings(cls, settings: Settings, secret: str) -> DoorRules:
        """What the settings say."""
        return cls(
            settings.max_body_bytes,
            settings.read_timeout_s,
            settings.max_wait_s,
            settings.cors_origin,
            bool(settings.api_key or settings.api_key_file),
            secret,
        )

    @classmethod
    def from_environment(cls) -> DoorRules | None:
        """As `as_environment` has put them; None where nobody has."""
        text = os.environ.get(DOOR_VARIABLE)
        if text is None:
            return None
        fields = json.loads(text)
        return cls(**fields | {"cors_origins": tuple(fields["cors_origins"])})

    def as_environment(self) -> dict[str, str]:
        """The variable that has them."""
        return {DOOR_VARIABLE: json.dumps(asdict(self))}
