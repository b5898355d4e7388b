"""Every exception this package raises on purpose.

::

    Exception
    └── ColbertError             something about the world is wrong: one sentence, with the way out
        ├── IndexNotFound        no index of that name in this database
        ├── IndexExists          an index of that name is already there
        ├── IndexCorrupt         stored data contradicts itself; verify tells more
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
    """Base of every error that is about the world and not about an argument."""


class IndexNotFound(ColbertError):
    """No index of that name in this database."""


class IndexExists(ColbertError):
    """An index of that name is already there."""


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


# Repair encodes rows again. It can't make these anew.
_REBUILT_PARTS = {"codec", "centroids"}


def damaged(part: str, index: str, detail: str) -> IndexCorrupt:
    """Return the error for damage to one part of an index.

    :param part: ``codec``, ``codes``, ``inverted lists`` and so on
    :param detail: which field is wrong, and what it holds
    """
    is_ = "is" if part == "codec" else "are"
    way_out = "rebuild the index" if part in _REBUILT_PARTS else "run verify, then repair"
    return IndexCorrupt(f"the {part} of index {index!r} {is_} damaged: {detail}; {way_out}")
