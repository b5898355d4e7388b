"""What the C library does with memory that is freed.

In: nothing. Out: nothing. Leaves to others: using less of it.
"""

from __future__ import annotations

from functools import cache

import numpy as np


@cache
def keep_freed_memory(megabytes: int) -> None:
    """Have the C library of Linux keep blocks up to that size when they are freed, instead of getting them again.

    It gives memory back above a threshold that follows the largest block ever freed, up to 32 MB. The block that raises
    it here is never touched, so it costs nothing. Elsewhere this does nothing.
    """
    np.empty(megabytes << 20, np.uint8)
