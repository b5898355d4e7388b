"""Every exception this package raises on purpose.

::

    Exception
    └── ColbertError             something outside the arguments is wrong: one sentence, with the way out
        ├── IndexNotFound        no index of that name in this database
        ├── IndexExists          an index of that name exists already
        ├── IndexCorrupt         stored data contradicts itself; verify says more
        ├── SchemaVersionError   the index was written by another version of the format
        ├── SourceError          the table, view or column to index is missing or cannot be indexed
        ├── BuildInterrupted     another process took over building this index
        ├── IndexBusy            another process is writing this index, and a transaction can't wait for it
        ├── WrongThread          the index was opened on a connection that belongs to another thread
        ├── ModelNotFound        no such model on this machine, and no hub to ask
        ├── ModelMismatch        the index was built with another model
        ├── ModelError           the model's files are damaged, unsafe or not a ColBERT model
        ├── ShapeError           arrays that do not fit together
        └── MissingDependency    an optional package is not installed

Wrong *arguments* (``k=0``, an unknown ``nbits``) raise :class:`ValueError`. Command lines turn every
:class:`ColbertError` and :class:`ValueError` of ours into one line and exit code 1.
"""


class ColbertError(Exception):
    """Base of every error that no argument causes."""


class IndexNotFound(ColbertError):
    """No index of that name in this database."""


class IndexExists(ColbertError):
    """An index of that name exists already."""


class IndexCorrupt(ColbertError):
    """Stored data contradicts itself."""


class SchemaVersionError(ColbertError):
    """The index was written by another version of the format."""


class SourceError(ColbertError):
    """The table, view or column to index is missing or cannot be indexed."""


class BuildInterrupted(ColbertError):
    """Another process took over building this index."""


class IndexBusy(ColbertError):
    """Another process is writing this index, and a transaction of the caller's can't wait for it."""


class WrongThread(ColbertError):
    """The index was opened on a connection that belongs to another thread."""


class ModelNotFound(ColbertError):
    """No such model on this machine, and no hub to ask."""


class ModelMismatch(ColbertError):
    """The index was built with another model."""


class ModelError(ColbertError):
    """The model's files are damaged, unsafe or not a ColBERT model."""


class ShapeError(ColbertError):
    """Arrays that do not fit together."""


class MissingDependency(ColbertError):
    """An optional package is not installed."""


# Other parts are repaired: their rows are encoded again.
_WAYS_OUT = {
    "codec": "rebuild the index",
    "centroids": "rebuild the index",
    "registry entry": "drop the index, then create it",
}


def damaged(part: str, detail: str, *, index: str = "") -> IndexCorrupt:
    """Return the error for damage to one part of an index.

    :param part: ``codec``, ``codes``, ``inverted lists`` and so on
    :param detail: which field is wrong, and what it holds
    :param index: name of the index; empty where only its arrays are at hand
    """
    name = f"index {index!r}" if index else "the index"
    is_ = "is" if part in ("codec", "registry entry") else "are"
    return IndexCorrupt(
        f"the {part} of {name} {is_} damaged: {detail}; {_WAYS_OUT.get(part, 'run verify, then repair')}"
    )
