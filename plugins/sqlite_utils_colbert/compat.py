"""What the commands use of their hosts though no handbook of theirs names it.

In: nothing. Out: one name for each such use, with the version it was seen in. Leaves to others: all that is documented.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pluggy import HookimplMarker

if TYPE_CHECKING:
    from llm import Model

# sqlite-utils 4.2.1: sqlite_utils.hookimpl is pluggy's marker of this name. To import it from there would import all of
# sqlite_utils, 20 to 50 ms, with every colbert-sqlite search.
hookimpl = HookimplMarker("sqlite_utils")


def require_key(model: Model) -> None:
    """Make sure that llm has the API key of a model, if it needs one.

    llm 0.36: get_key() is a method of every model, and returns None where no key is needed.

    :raises llm.NeedsKeyException: if the key is missing
    """
    model.get_key()
