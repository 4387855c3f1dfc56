"""A row of a table, and the pool that rows make: every key of a predecessor is honoured, said to
need nothing, or refused with the reason (pure; the import command)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

from gpupool.nearest import nearest_hint

Values = Mapping[str, Any]
Given = tuple[str, Any]
"""A foreign key and its value."""
ENGINE_ARGS = "engine_args"


class Refused(Exception):
    """This key, with this value, cannot be taken over; the message says why and what to use."""


@dataclass
class Draft:
    """A pool that is being put together from foreign keys."""

    name: str = ""
    values: dict[str, Any] = field(default_factory=dict)
    words: list[str] = field(default_factory=list)
    """What follows --."""
    sizes: dict[str, int] = field(default_factory=dict)
    """What was said of GPUs per worker: tensor, pipeline, gpus."""
    context: int | None = None
    """Tokens that a request may have, where llama.cpp has to be told those of all its slots."""
    is_everywhere: bool = False
    """Whether one replica per slice was asked for; else it is one, as with the predecessors."""
    notes: list[str] = field(default_factory=list)
    commands: list[str] = field(default_factory=list)
    """Shell lines that go before the start."""
    refusals: list[str] = field(default_factory=list)

    def set(self, name: str, value: Any) -> None:
        """Set one of our settings, once."""
        before = self.values.setdefault(name, value)
        if before != value:
            raise Refused(f"{name} is {before!r} already by another key; say it once")

    def add(self, flag: str, value: Any = True) -> None:
        """An argument for the engine; a switch that is off is left out, as it is there."""
        if value is False:
            return
        if flag in self.words:
            raise Refused(f"{flag} is given already by another key; say it once")
        self.words.append(flag)
        if isinstance(value, list | tuple):
            self.words += [str(item) for item in value]
        elif value is not True:
            self.words.append(str(value))

    @property
    def engine(self) -> str:
        """The engine, vLLM where none was named."""
        return str(self.values.get("infer_type", "vllm"))


Take = Callable[[Draft, Any], None]


@dataclass(frozen=True, slots=True)
class Key:
    """One row: a foreign key, a value that people give it, and what that makes of the pool.

    A second row of the same name is another example of the first.
    """

    name: str  # * stands for any name; at the end, `take` gets (name, value)
    example: Any
    take: Take
    gives: Values = field(default_factory=dict)
    """What the example makes: settings by name, and engine_args for what follows --."""
    says: str = ""
    """Where it makes no setting: why none is needed, or what to do."""
    refuses: str = ""
    """Why the example is refused, and what to use instead."""


def sets(
    name: str,
    example: Any,
    setting: str,
    read: Callable[[Any], Any] = lambda value: value,
    gives: Any = None,
) -> Key:
    """A row that is one of our settings."""

    def take(draft: Draft, value: Any) -> None:
        draft.set(setting, read(value))

    return Key(name, example, take, {setting: example if gives is None else gives})


def passes(name: str, example: Any, flag: str) -> Key:
    """A row that is an argument of the engine."""
    words = [flag] if example is True else [flag, str(example)]
    return Key(name, example, lambda draft, value: draft.add(flag, value), {ENGINE_ARGS: words})


def sizes(name: str, example: Any, size: str, gives: Values) -> Key:
    """A row that says how many GPUs a worker has."""

    def take(draft: Draft, value: Any) -> None:
        draft.sizes[size] = whole(value)

    return Key(name, example, take, gives)


def needless(
    name: str, example: Any, text: str, only: Sequence[Any] = (), otherwise: str = ""
) -> Key:
    """A row of which the pool does what it asks for anyway; with `only`, for these values."""

    def take(draft: Draft, value: Any) -> None:
        if only and value not in only:
            raise Refused(otherwise)
        draft.notes.append(f"{name} {shown(value)}: {text}")

    return Key(name, example, take, says=text)


def refuses(name: str, example: Any, reason: str, unless: Sequence[Any] = ()) -> Key:
    """A row that cannot be; `unless` are values that ask for nothing."""

    def take(draft: Draft, value: Any) -> None:
        if value not in unless:
            raise Refused(reason)

    return Key(name, example, take, refuses=reason)


def also_refuses(name: str, example: Any, reason: str) -> Key:
    """Another example of the row above, one that it refuses."""
    return refuses(name, example, reason)


def apply(draft: Draft, keys: Iterable[Key], values: Iterable[Given], where: str = "") -> None:
    """Take every value by its row; what is refused is collected, so that all of it is told at
    once. A value of null was not given."""
    keys = list(keys)
    for name, value in values:
        if value is None:
            continue
        row = find_row(keys, name)
        if row is None:
            hint = nearest_hint(name, [key.name for key in keys])
            draft.refusals.append(f"{where}{name}: not a known key{hint}; leave it out")
            continue
        try:
            if row.name.endswith("*"):
                value = (name[len(row.name) - 1 :], value)
            row.take(draft, value)
        except Refused as refusal:
            shown_value = value[1] if row.name.endswith("*") else value
            draft.refusals.append(f"{where}{name} {shown(shown_value, name)}: {refusal}")


def find_row(keys: Iterable[Key], name: str) -> Key | None:
    """The row of a key: the first of its name, else the first whose * stands for it."""
    keys = list(keys)
    exact = [key for key in keys if key.name == name]
    fitting = [key for key in keys if "*" in key.name and fnmatchcase(name, key.name)]
    return next(iter(exact + fitting), None)


def flatten(keys: Iterable[Key], tree: Mapping[str, Any], prefix: str = "") -> Iterator[Given]:
    """A tree as names with dots and values, down to what has a row."""
    keys = list(keys)
    for key, value in tree.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict) and find_row(keys, name) is None:
            yield from flatten(keys, value, f"{name}.")
        else:
            yield name, value


def shown(value: Any, name: str = "") -> str:
    """A value as it is told; never a key."""
    return "(not shown)" if name.endswith(("key", "token")) else repr(value)


def whole(value: Any) -> int:
    """A whole number that may be written as a float or a string."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise Refused("give a whole number") from None
    if number != int(number) or number < 0:
        raise Refused("give a whole number")
    return int(number)


def truth(value: Any) -> bool:
    """A switch that may be written as a string."""
    if isinstance(value, bool):
        return value
    if str(value).lower() in ("true", "1", "yes", "y", "t"):
        return True
    if str(value).lower() in ("false", "0", "no", "n", "f", ""):
        return False
    raise Refused("give true or false")


def names(value: Any) -> list[str]:
    """One name or several."""
    return [str(item) for item in value] if isinstance(value, list | tuple) else [str(value)]


def text(value: Any) -> str:
    """What YAML may take for a number, such as the list of GPUs 0."""
    return ",".join(str(item) for item in value) if isinstance(value, list) else str(value)
