"""Makes ``minilm_projection.safetensors``: the fixed map from all-MiniLM-L6-v2's 384 dimensions to 128.

In: text columns of SQLite databases. Out: one file with ``weight`` float32 [128, 384] and ``bias`` float32 [128], a PCA
of the token embeddings of that text with the centring as the bias. The same text gives the same map, up to rounding.
Leaves to others: using it (encoders/minilm.py).

The shipped file was made from Apache-2.0 text, a quarter of each column, 139,554 tokens in all::

    python -m tests.benchmarks.fit_projection colbert_sqlite/encoders/minilm_projection.safetensors \\
        ../shared/data/til.db:til:text ../shared/data/docs.db:section:text

nDCG@10 of exhaustive MaxSim over 384 and over these 128 dimensions: cranfield 0.446 and 0.438, med 0.800 and 0.796,
cacm 0.482 and 0.469, npl 0.498 and 0.493. The government posts of blog.db beside that text cost 0.01 on average.
"""

from __future__ import annotations

import argparse
import sqlite3
import string
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import save_file
from sentence_transformers.base.modules import Transformer

from colbert_sqlite.encoders import minilm
from colbert_sqlite.passages import looks_like_html, strip_html
from colbert_sqlite.storage.schema import quote_identifier

DIM = 128
PIECE_CHARACTERS = 1000
EVERY = 4
BATCH = 64


def pieces(source: str) -> Iterator[str]:
    """Every fourth piece of all the text in one column, in the order they are stored.

    :param source: ``database:table:column``
    """
    database, table, column = source.rsplit(":", 2)
    quoted_table, quoted_column = map(quote_identifier, (table, column))
    uri = Path(database).resolve().as_uri() + "?mode=ro&immutable=1"
    with closing(sqlite3.connect(uri, uri=True)) as db:
        rows = db.execute(f"select {quoted_column} from {quoted_table} where {quoted_column} is not null")
        text = "\n\n".join(strip_html(value) if looks_like_html(value) else value for (value,) in rows)
    for start in range(0, len(text), PIECE_CHARACTERS * EVERY):
        yield text[start : start + PIECE_CHARACTERS]


def principal_components(
    count: int, total: NDArray[np.float64], products: NDArray[np.float64]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Weight and bias of the map on the components of largest variance, largest first.

    :param count: number of embeddings
    :param total: float64 [n], their sum
    :param products: float64 [n, n], the sum of their outer products
    """
    mean = total / count
    covariance = products / count - np.outer(mean, mean)
    _, vectors = np.linalg.eigh(covariance)
    weight = vectors[:, ::-1][:, :DIM].T
    # An eigenvector has no sign of its own: its largest component is made positive.
    largest = np.take_along_axis(weight, np.abs(weight).argmax(axis=1, keepdims=True), axis=1)
    weight = weight * np.sign(largest)
    # Row by row in memory: safetensors writes another order as it lies and reads it back scrambled.
    return weight.astype(np.float32, order="C"), (-weight @ mean).astype(np.float32)


def hidden_states(backbone: Transformer, texts: list[str], skip: torch.Tensor) -> NDArray[np.float64]:
    """float64 [n_tokens, 384], not normalized: long vectors are those that the mean of a text hangs on."""
    features = backbone.preprocess(texts)
    with torch.inference_mode():
        states = backbone(features)["token_embeddings"]
    keep = features["attention_mask"].bool() & ~torch.isin(features["input_ids"], skip)
    found: NDArray[np.float64] = states[keep].double().numpy()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description="Fit the projection of the minilm model on text.")
    parser.add_argument("output", type=Path)
    parser.add_argument("source", nargs="+", help="database:table:column")
    arguments = parser.parse_args()
    folder = minilm.model_folder()
    minilm.check_weights(folder)
    backbone = Transformer(str(folder))
    backbone.max_seq_length = minilm.DOCUMENT_LENGTH
    backbone.eval()
    assert backbone.tokenizer is not None, "a text model has one"
    skip = torch.tensor(backbone.tokenizer.convert_tokens_to_ids(list(string.punctuation)))
    texts = [piece for source in arguments.source for piece in pieces(source)]
    hidden_size = backbone.get_embedding_dimension()
    count, total, products = 0, np.zeros(hidden_size), np.zeros((hidden_size, hidden_size))
    for start in range(0, len(texts), BATCH):
        states = hidden_states(backbone, texts[start : start + BATCH], skip)
        count += len(states)
        total += states.sum(axis=0)
        products += states.T @ states
    weight, bias = principal_components(count, total, products)
    save_file({"weight": weight, "bias": bias}, arguments.output)
    print(f"{count} tokens of {len(texts)} pieces, {arguments.output.stat().st_size} bytes")


if __name__ == "__main__":
    main()
