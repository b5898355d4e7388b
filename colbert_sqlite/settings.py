"""Every option, declared once.

In: keyword arguments of the public API, JSON stored with an index. Out: frozen, checked objects that
travel as arguments. Leaves to others: reading or writing them, acting on them.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from colbert_sqlite.values import plain_key, plain_value, whole_number

Html = Literal["auto", "yes", "no"]
Mode = Literal["colbert", "fts", "hybrid"]
Fusion = Literal["rrf", "weighted"]

Backend = Literal["auto", "torch", "onnx"]

NBITS = (1, 2, 4, 8)
# No index has so many. Numbers of this size do not overflow.
MAX_NPROBE = 1 << 20
MAX_NDOCS = 1 << 31
MAX_K = 1 << 20
# No model reads so many of a query.
MAX_QUERY_CHARACTERS = 100_000


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelOptions:
    """Options that load and run a model.

    :param device: torch's name of a device: ``cpu``, ``cuda:1``, ``mps``; default: the fastest
    :param dtype: number type of the model: ``auto``, ``float32``, ``bfloat16`` or ``float16``
    :param batch_size: texts in one batch; default: as many as fit in memory
    :param trust_remote_code: whether the model may run Python code of its own
    :param backend: ``torch``, ``onnx``, or ``auto`` for the faster one
    :raises ValueError: if a value is out of range
    """

    device: str | None = None
    dtype: str = "auto"
    batch_size: int | None = None
    trust_remote_code: bool = False
    backend: Backend = "auto"

    def __post_init__(self) -> None:
        if self.backend not in get_args(Backend):
            raise ValueError(f"backend must be {_one_of(get_args(Backend))}, not {self.backend!r}")
        if self.batch_size is not None and self.batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, not {self.batch_size}")
        if self.backend == "onnx" and (self.device not in (None, "cpu") or self.dtype not in ("auto", "float32")):
            raise ValueError("the onnx backend computes in float32 on the processor: leave device and dtype out")

    @property
    def needs_torch(self) -> bool:
        """Whether only torch can run the model with these options."""
        elsewhere = self.device not in (None, "cpu") or self.dtype != "auto"
        return self.backend == "torch" or (self.backend == "auto" and elsewhere)


@dataclass(frozen=True, slots=True)
class Filter:
    """The rows that a search may find: by default all.

    :param where: SQL condition on the source table
    :param params: its named parameters; numpy's values become Python's own
    :param pks: primary keys; only these rows are scored. They become a tuple
    :raises ValueError: if *params* come without *where*, or *pks* is one text
    """

    where: str | None = None
    params: Mapping[str, object] | None = None
    pks: Iterable[object] | None = None

    def __post_init__(self) -> None:
        if self.params is not None and not isinstance(self.params, Mapping):
            raise ValueError(f"params must map names to values, not {self.params!r}")
        if self.params and self.where is None:
            raise ValueError(f"params ({', '.join(self.params)}) need where, the condition that uses them")
        if isinstance(self.pks, (str, bytes)) or not isinstance(self.pks, (Iterable, type(None))):
            raise ValueError(f"pks must be a list of primary keys, such as [{self.pks!r}]")
        object.__setattr__(self, "params", {name: plain_value(value) for name, value in (self.params or {}).items()})
        object.__setattr__(self, "pks", None if self.pks is None else tuple(map(plain_key, self.pks)))


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexSettings:
    """The settings of an index, stored with it. A rebuild uses the same settings.

    :raises ValueError: if a value is out of range
    """

    table: str
    columns: Sequence[str]
    model: str
    nbits: int = field(default=4, metadata={"help": "bits of residual per dimension: 1, 2, 4 or 8"})
    where: str | None = field(default=None, metadata={"help": "SQL condition: index only the rows that meet it"})
    params: Mapping[str, object] = field(default_factory=dict)
    heading: str | None = field(
        default=None, metadata={"help": "column, such as a title, repeated at the top of every passage of the row"}
    )
    html: Html = field(default="auto", metadata={"help": "strip HTML markup: auto, yes or no"})
    max_tokens: int | None = field(
        default=None, metadata={"help": "longest passage in tokens; default: the model's document length, at most 256"}
    )
    pool_factor: int = field(
        default=1, metadata={"help": "keep one token in so many, merging those most alike: 2 halves the index"}
    )
    triggers: bool = field(default=True, metadata={"help": "let triggers on the table note which rows change"})
    seed: int = 42
    encoder: str = ""
    """Class of the caller's own encoder; empty for a model that :func:`load_encoder` loads by its name."""

    def __post_init__(self) -> None:
        if isinstance(self.columns, str):
            raise ValueError(f"columns must be a list of names, such as [{self.columns!r}]")
        object.__setattr__(self, "columns", tuple(self.columns))
        for name in ("nbits", "max_tokens", "pool_factor", "seed"):
            object.__setattr__(self, name, plain_value(getattr(self, name)))
        if isinstance(self.params, Mapping):
            object.__setattr__(self, "params", {name: plain_value(value) for name, value in self.params.items()})
        if not self.columns:
            raise ValueError("name at least one column to index")
        # Settings may come from a file, where annotations hold nothing.
        texts: list[object] = [self.table, self.model, self.encoder, *self.columns]
        texts += [text for text in (self.where, self.heading) if text is not None]
        if not all(isinstance(text, str) and "\0" not in text for text in texts):
            raise ValueError(f"table, columns, model, where and heading must be text without NUL: {texts}")
        if len({c.lower() for c in self.columns}) != len(self.columns):
            raise ValueError(f"a column is named twice: {', '.join(self.columns)}")
        if type(self.nbits) is not int or self.nbits not in NBITS:
            raise ValueError(f"nbits must be 1, 2, 4 or 8, not {self.nbits}")
        if self.html not in get_args(Html):
            raise ValueError(f"html must be auto, yes or no, not {self.html!r}")
        params: object = self.params
        if not isinstance(params, dict) or not all(
            isinstance(name, str) and isinstance(value, (str, int, float, type(None))) for name, value in params.items()
        ):
            raise ValueError(f"params must be text, numbers or NULL, to be stored with the index: {self.params}")
        if self.max_tokens is not None and (type(self.max_tokens) is not int or self.max_tokens < 16):
            raise ValueError(f"max_tokens must be a whole number of at least 16, not {self.max_tokens!r}")
        if type(self.triggers) is not bool:
            raise ValueError(f"triggers must be True or False, not {self.triggers!r}")
        if type(self.seed) is not int or self.seed < 0:
            raise ValueError(f"seed must be a whole number of at least 0, not {self.seed!r}")
        if type(self.pool_factor) is not int or self.pool_factor < 1:
            raise ValueError(f"pool_factor must be a whole number of at least 1, not {self.pool_factor}")

    def to_json(self) -> str:
        """Return the settings as JSON text."""
        return json.dumps(dataclasses.asdict(self), ensure_ascii=False, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> IndexSettings:
        """Return settings from JSON text.

        :raises ValueError: or KeyError or TypeError, if the text does not hold settings
        """
        values = json.loads(text)
        if not isinstance(values["columns"], list):
            raise ValueError(f"columns must be a list, not {values['columns']!r}")
        return cls(**values)


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchSettings:
    """How many rows a search returns, and how wide it looks. :meth:`for_k` has the defaults.

    :raises ValueError: if a value is out of range
    """

    k: int = field(default=10, metadata={"help": "rows to find"})
    nprobe: int = field(metadata={"help": "centroids probed per query token"})
    ndocs: int = field(metadata={"help": "passages whose codes are read; a quarter of them is scored exactly"})
    mode: Mode = field(
        default="colbert",
        metadata={
            "help": "colbert, fts (rows that the table's FTS5 index finds, in ColBERT's order), or hybrid (both)"
        },
    )
    fusion: Fusion = field(
        default="rrf", metadata={"help": "how hybrid joins both rankings: rrf (reciprocal ranks) or weighted (scores)"}
    )
    # nDCG@10 on cranfield, med, cacm, npl and the sample blog, whose queries avoid the words of its posts: with 0.5
    # .455, .789, .519, .495, .370; with 0.7 .453, .795, .509, .499, .489. Equal shares follow words too far.
    weight: float = field(default=0.7, metadata={"help": "share of ColBERT in hybrid, from 0 to 1"})
    threshold: float | None = field(
        default=None, metadata={"help": "leave out rows whose normalized score, from 0 to 1, is lower"}
    )

    def __post_init__(self) -> None:
        for name, type_ in (("mode", Mode), ("fusion", Fusion)):
            if getattr(self, name) not in get_args(type_):
                raise ValueError(f"{name} must be {_one_of(get_args(type_))}, not {getattr(self, name)!r}")
        for name in ("weight", "threshold"):
            value = plain_value(getattr(self, name))
            object.__setattr__(self, name, value)
            if value is None and name == "threshold":
                continue
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1:
                raise ValueError(f"{name} must be a number from 0 to 1, not {value!r}")
        for name, minimum, maximum in (("k", 1, MAX_K), ("nprobe", 1, MAX_NPROBE), ("ndocs", 4, MAX_NDOCS)):
            object.__setattr__(self, name, whole_number(name, getattr(self, name), minimum, maximum))

    @classmethod
    def for_k(cls, k: int, **changes: Any) -> SearchSettings:
        """Return the defaults for the *k* best hits, with those *changes* that are not None.

        They are wider than in PLAID's Table 2 (nprobe 1 and ndocs 256 for k = 10). Recall@10 was measured with 14,000
        passages, 200 queries of 32 tokens, and nbits 4: 0.78 with nprobe 16 and ndocs 1024; 0.87 with 32 and 2048; 0.90
        with 32 and 4096; 0.92 with 32 and 8192; 0.93 with 64 and 16384, which is all that 4 bits keep. Recall@100 of
        the last two is 0.94 and 0.95. Time grows with ndocs; more probes cost little.

        :raises ValueError: if *k* or a value is out of range
        """
        k = whole_number("k", k, 1, MAX_K)
        overrides = {name: value for name, value in changes.items() if value is not None}
        return cls(**{"k": k, "nprobe": 32, "ndocs": 2048 if k <= 10 else max(16 * k, 8192), **overrides})


def _one_of(words: Sequence[str]) -> str:
    return f"{', '.join(words[:-1])} or {words[-1]}"
