"""Settings of a stage: a frozen dataclass whose fields may be set by a TOML file, and that refuses what it does not know.

@dataclass(frozen=True, kw_only=True)
class ExportConfig(Settings):
    gate: float = 0.2

ExportConfig.from_toml(Path("my.toml"), gate=0.1)
"""

from __future__ import annotations

import dataclasses
import difflib
import tomllib
import types
import typing
from pathlib import Path
from typing import Any, Self

from .errors import InputError
from .spec import read_bytes


class Settings:
    """Base of a stage's settings; subclasses are frozen, keyword-only dataclasses of plain values."""

    @classmethod
    def from_toml(cls, path: Path | None, **options: Any) -> Self:
        """The settings of a TOML file, then `options` that are not None. InputError names an unknown key."""
        return cls.from_dict({**read_toml(path), **{key: value for key, value in options.items() if value is not None}}, str(path))

    @classmethod
    def from_dict(cls, values: dict[str, Any], name: str) -> Self:
        """Settings from a mapping; InputError for an unknown key or a value of the wrong type."""
        kinds = typing.get_type_hints(cls)
        for key, value in values.items():
            if key not in kinds:
                near = difflib.get_close_matches(key, kinds, 1)
                hint = f"Did you mean {near[0]!r}?" if near else f"Known: {', '.join(kinds)}."
                raise InputError(f"{name} has the unknown setting {key!r}. {hint}")
            kind = kinds[key]
            allowed = typing.get_args(kind) if isinstance(kind, types.UnionType) else (kind,)
            fits = isinstance(value, (*allowed, int) if float in allowed else allowed)
            if not fits or (isinstance(value, bool) and kind is not bool):
                raise InputError(f"{name}: {key} is {value!r}; give a {getattr(kind, '__name__', kind)}.")
        return cls(**values)

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
        return tomllib.loads(read_bytes(path).decode()) if path else {}
    except (ValueError, RecursionError) as error:  # of the text, its encoding, the digits of a number, or brackets in brackets
        raise InputError(f"{path} is not TOML ({error}). Write lines such as: epochs = 20") from None
