"""The failures a user can mend: one line that names the thing and the way out.

Everything that is not a `SattrtError` is a fault of ours and keeps its traceback.

    raise InputError(f"{path} does not exist. Give a folder, a zip or a tar of tiles.")
"""

import re


class SattrtError(Exception):
    """Base of every failure that the user can mend; the command line prints it as one line and exits with 1."""

    def __str__(self) -> str:
        text = re.sub(r"\s*[\r\n]\s*", " ", super().__str__().strip())  # spaces stay: they may be of a path
        return text if len(text) <= 2000 else f"{text[:1400]} ... {text[-500:]}"  # what is quoted may be of any length


class InputError(SattrtError):
    """A file, folder, archive, array or option that can't be used as given."""


class ContractError(SattrtError):
    """Artefacts that don't belong together: another class list, a changed byte, an unknown schema."""


class BackendError(SattrtError):
    """A library or piece of hardware that this machine lacks or that refused its work."""


class ParityError(SattrtError):
    """An exported model whose answers differ from those of the network it was made from."""


def no_library(library: str, extra: str, error: Exception | None = None) -> BackendError:
    """The refusal where a library can't be imported. error: what its import raised; what is there and broken says itself why."""
    if error is None or isinstance(error, ModuleNotFoundError):
        return BackendError(f"{library} is not installed. Install it with: pip install '{extra}'")
    return BackendError(f"{library} is installed and can't be imported ({error}). Install it anew: pip install --force-reinstall '{extra}'")


def by_reason(said: dict[str, str]) -> dict[str, list[str]]:
    """The names that share a reason, by reason. said: the reason of each."""
    found: dict[str, list[str]] = {}
    for name, reason in said.items():
        found.setdefault(reason, []).append(name)
    return found
