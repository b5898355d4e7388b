"""Encoders that other packages offer, as entry points of the group ``colbert_sqlite.encoders``.

In: a name and options. Out: the encoder that a package makes of them. Leaves to others: which names come first
(registry.py). A package is imported when its encoder is loaded, never before.

The name of an entry point is the name of the model; its object is called with one ``ModelOptions`` and returns an
``Encoder`` of that name::

    [project.entry-points."colbert_sqlite.encoders"]
    acme = "acme_colbert:load"
"""

from __future__ import annotations

from importlib.metadata import EntryPoint, entry_points

from colbert_sqlite.encoders.base import Encoder
from colbert_sqlite.errors import ModelError
from colbert_sqlite.settings import ModelOptions

GROUP = "colbert_sqlite.encoders"
# Everything an encoder must have.
MEMBERS = tuple(name for name in vars(Encoder) if not name.startswith("_"))


def packages() -> dict[str, str]:
    """Return the names of all plugins, in alphabetical order, with the package that each comes from."""
    return {entry.name: _package(entry) for entry in sorted(entry_points(group=GROUP), key=lambda entry: entry.name)}


def load(name: str, options: ModelOptions) -> Encoder:
    """Load the encoder of a plugin.

    :raises ModelError: if it fails, if it is not an encoder of that name, or if two packages offer one
    """
    entries = tuple(entry_points(group=GROUP, name=name))
    if len(entries) > 1:
        both = " and ".join(sorted(map(_package, entries)))
        raise ModelError(f"the packages {both} both offer an encoder called {name!r}: uninstall one")
    [entry] = entries
    plugin = f"the encoder {name!r} of package {_package(entry)} (entry point {entry.value})"
    try:
        encoder: Encoder = entry.load()(options)
        missing = [member for member in MEMBERS if not hasattr(encoder, member)]
    except Exception as error:
        reason = (str(error).splitlines() or [""])[0]
        raise ModelError(f"{plugin} can't be loaded: {type(error).__name__}: {reason}") from error
    if missing:
        raise ModelError(f"{plugin} is not an encoder: it has no {missing[0]}")
    if encoder.name != name:
        raise ModelError(f"{plugin} calls itself {encoder.name!r}: an index would not find it again")
    return encoder


def _package(entry: EntryPoint) -> str:
    return entry.dist.name if entry.dist else "unknown"
