"""Settings of a stage: a frozen dataclass whose fields may be set by a TOML file or one by one, and that refuses what it does not know.

@dataclass(frozen=True, kw_only=True)
class ExportConfig(Settings):
    gate: float = 0.2

ExportConfig.from_toml(Path("my.toml"), ["gate=0.5"], rebuild=True)
"""

from __future__ import annotations

import dataclasses
import difflib
import tomllib
import types
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

from .errors import InputError
from .spec import read_bytes

_WANTED = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}


class Settings:
    """Base of a stage's settings; subclasses are frozen, keyword-only dataclasses of plain values."""

    @classmethod
    def from_toml(cls, path: Path | None, assignments: Sequence[str] | None = None, **options: Any) -> Self:
        """The settings of a TOML file, over them `assignments` (those of --set, such as "seed=1"), over both `options` that are not None.

        InputError for an unknown key, a value of the wrong type, or a setting that both an option and an assignment give.
        """
        values = {**cls._checked(read_toml(path), str(path)), **cls.given(assignments, **options)}
        return cls(**{**cls.behind(values), **values})

    @classmethod
    def given(cls, assignments: Sequence[str] | None = None, **options: Any) -> dict[str, Any]:
        """The settings that the command line itself gives, as `from_toml` has them; the same errors."""
        assigned = cls._assigned(assignments or ())
        chosen = {key: value for key, value in options.items() if value is not None}
        if both := [key for key in assigned if key in chosen]:
            raise InputError(f"{cls.option(both[0])} and --set {both[0]} are one setting. Give one of them.")
        return assigned | cls._checked(chosen, "The command line")

    @classmethod
    def from_dict(cls, values: dict[str, Any], name: str) -> Self:
        """Settings from a mapping; InputError for an unknown key or a value of the wrong type, with the `name` of where they come from."""
        return cls(**cls._checked(values, name))

    @classmethod
    def _checked(cls, values: dict[str, Any], name: str) -> dict[str, Any]:
        kinds = typing.get_type_hints(cls)
        for key, value in values.items():
            if key not in kinds and isinstance(value, dict):
                raise InputError(f"{name} has the section [{key}]; settings are not in sections. Leave the heading out.")
            if key not in kinds:
                near = difflib.get_close_matches(key, kinds, 1)
                hint = f"Did you mean {near[0]!r}?" if near else f"Known: {', '.join(kinds)}."
                raise InputError(f"{name} has the unknown setting {key!r}. {hint}")
            kinds_of = _kinds(kinds[key])
            fits = isinstance(value, (*kinds_of, int) if float in kinds_of else kinds_of)
            if not fits or (isinstance(value, bool) and bool not in kinds_of):
                raise InputError(f"{name}: {key} is {value!r}; give {_WANTED[kinds_of[0]]}.")
        return values

    @classmethod
    def _assigned(cls, assignments: Sequence[str]) -> dict[str, Any]:
        """The settings of "KEY=VALUE" texts. A value is one of TOML; text needs no quotes."""
        kinds = typing.get_type_hints(cls)
        found: dict[str, Any] = {}
        for each in assignments:
            key, equals, text = (part.strip() for part in each.partition("="))
            if not key or not equals:
                raise InputError(f"--set {each} is not KEY=VALUE. Write it as: --set {key or next(iter(kinds))}=VALUE")
            if key in found:
                raise InputError(f"--set {key} is given twice. Give it once.")
            value = _toml_value(text)
            as_it_is = str in _kinds(kinds.get(key, str)) and not isinstance(value, str)  # batches=64 means "64"
            found |= cls._checked({key: text if as_it_is else value}, "--set")
        return found

    @classmethod
    def behind(cls, values: dict[str, Any]) -> dict[str, Any]:
        """What stands behind these values in place of the fields' defaults: a recipe."""
        return {}

    @classmethod
    def option(cls, key: str) -> str:
        """The command's own option for a setting."""
        return f"--{key.replace('_', '-')}"

    @staticmethod
    def refuse(stage: str, faults: dict[str, bool]) -> None:
        """InputError for the first fault that is there."""
        for fault, found in faults.items():
            if found:
                raise InputError(f"The {stage} setting {fault}.")

    def to_dict(self) -> dict[str, Any]:
        """The settings as plain values, for JSON."""
        return dataclasses.asdict(self)  # type: ignore[call-overload, no-any-return]


def read_toml(path: Path | None) -> dict[str, Any]:
    """The content of a TOML file; nothing for None. InputError where it is no TOML."""
    try:
        return tomllib.loads(read_bytes(path).decode("utf-8-sig")) if path else {}
    except (ValueError, RecursionError) as error:  # of the text, its encoding, the digits of a number, or brackets in brackets
        raise InputError(f"{path} is not TOML ({error}). Write lines of the form: setting = value") from None


def _toml_value(text: str) -> Any:
    """A text as TOML's value, or itself where it is none."""
    try:
        found = tomllib.loads(f"value = {text}")
    except (ValueError, RecursionError):
        return text
    return found["value"] if len(found) == 1 else text  # a line break begins another setting


def _kinds(hint: Any) -> tuple[type, ...]:
    """The types that a field takes."""
    return typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
