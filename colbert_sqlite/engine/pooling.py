"""Token pooling: alike tokens of a passage become one, so that an index needs a fraction of the space.

In: the embeddings of one passage. Out: fewer of them, of unit length. Leaves to others: which passages are pooled, and
what happens to embeddings afterwards. The handbook says what pooling costs in quality.
"""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

import numpy as np
from numpy.typing import NDArray

from colbert_sqlite.errors import MissingDependency


def pool(embeddings: NDArray[np.float32], factor: int) -> NDArray[np.float32]:
    """Return about one embedding in *factor*: the first, then the mean direction of each cluster of the others.

    Clusters come from Ward's linkage of cosine distances, as PyLate and sentence-transformers cluster. The first
    embedding stays alone because it, [CLS], stands for the whole passage. Means are normalized, unlike those of the
    references except sentence-transformers: the codec stores directions and scores them as unit vectors.

    :param embeddings: float32 [n_tokens, dim], L2-normalized rows
    :param factor: at least 1, which pools nothing
    :return: float32 [1 + max(1, (n_tokens - 1) // factor), dim], or the embeddings themselves if they are no more;
        equal distances may leave fewer
    :raises MissingDependency: if there is something to pool and scipy is not installed

    Token pooling (arXiv 2409.14683) §3.
    """
    first, others = embeddings[:1], embeddings[1:]
    n_clusters = max(1, len(others) // factor)
    if len(others) <= n_clusters:
        return embeddings
    hierarchy, pdist = clustering()
    # Of unit vectors, half the squared distance is the cosine distance; a matrix product this small would only start
    # and stop the threads of BLAS.
    linkage = hierarchy.linkage(pdist(others, "sqeuclidean") / 2, "ward")
    clusters = hierarchy.fcluster(linkage, n_clusters, "maxclust")
    order = np.argsort(clusters, kind="stable")
    starts = np.flatnonzero(np.diff(clusters[order], prepend=0))
    sums = np.add.reduceat(others[order], starts)
    norms = np.linalg.norm(sums, axis=1, keepdims=True)
    # Members that point in opposite directions have no mean direction: the first of them stands for all.
    pooled = np.where(norms > 1e-6, sums / np.maximum(norms, 1e-6), others[order[starts]])
    return np.concatenate([first, pooled.astype(np.float32)])


def clustering() -> tuple[ModuleType, Callable[..., NDArray[np.float64]]]:
    """Return scipy's module of hierarchical clustering, and its function for distances of rows.

    :raises MissingDependency: if scipy is not installed
    """
    try:
        from scipy.cluster import hierarchy
        from scipy.spatial.distance import pdist
    except ImportError:
        raise MissingDependency("token pooling needs scipy: pip install 'colbert-sqlite[pooling]'") from None
    return hierarchy, pdist
