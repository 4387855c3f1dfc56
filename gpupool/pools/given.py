"""Settings made of given values, and which variables of an environment are settings.

For the commands, which make other processes' environments; a pool reads its own (settings.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import AliasChoices, ValidationError
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource

from gpupool.errors import ConfigError
from gpupool.settings import Settings, env_name, explain_refusal, refuse_unknown_variables


class _Given(Settings):
    """Of what is given alone, whatever this process's environment says."""

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return (init_settings,)


def settings_of(values: Mapping[str, Any]) -> Settings:
    """The settings that these values make, and nothing else; ConfigError as of read_settings."""
    try:
        return _Given(**values)
    except ValidationError as error:
        raise ConfigError(explain_refusal(error)) from None


def variables_of(environ: Mapping[str, str]) -> dict[str, str]:
    """The variables of an environment that are settings, with the field of each. An unknown
    GPUPOOL_ variable is a ConfigError."""
    refuse_unknown_variables(environ)
    fields: dict[str, str] = {}
    for field in Settings.model_fields:
        alias = Settings.model_fields[field].validation_alias
        names = alias.choices if isinstance(alias, AliasChoices) else (env_name(field),)
        fields |= {str(name).lower(): field for name in names}
    return {name: fields[name.lower()] for name in environ if name.lower() in fields}
