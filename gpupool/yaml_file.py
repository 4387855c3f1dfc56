"""YAML as people write settings into it (every process that reads a file of them)."""

from __future__ import annotations

from typing import Any

import yaml

from gpupool.errors import ConfigError


class _Loader(yaml.SafeLoader):  # type: ignore[misc]
    """Refuses a key that is given twice, of which YAML would take the last."""

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        """Called for each mapping."""
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, str) and key in seen:
                line = key_node.start_mark.line + 1
                raise ConfigError(f"{key!r} is given twice (line {line}); give it once")
            if isinstance(key, str):
                seen.add(key)
        return super().construct_mapping(node, deep)


def load(text: str) -> Any:
    """What the text says. ConfigError for a doubled key, which does not know the file's name;
    yaml.YAMLError for what is no YAML."""
    return yaml.load(text, _Loader)
