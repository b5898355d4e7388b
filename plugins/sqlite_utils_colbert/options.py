"""The options that commands share, and errors as one line.

In: words of a shell. Out: click commands, whose functions get settings as objects. Leaves to others: what the commands
do.
"""

from __future__ import annotations

import dataclasses
import json
import sqlite3
from collections.abc import Callable, Collection
from functools import wraps
from inspect import signature
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, cast, get_args

import click

from colbert_sqlite import ColbertError, Filter, Fusion, Mode, ModelOptions, SearchSettings
from colbert_sqlite.serving import Backend

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Function = TypeVar("Function", bound=Callable[..., object])
PrimaryKey = str | tuple[str | int | float | None, ...]


class Decorator(Protocol):
    """Adds an option or several to a function."""

    def __call__(self, function: Function, /) -> Function: ...


class ColbertCommand(click.Command):
    """Says in one line what went wrong."""

    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except (BrokenPipeError, click.exceptions.Exit, click.Abort):
            raise
        except (sqlite3.Error, ColbertError, ValueError, OSError) as error:
            raise click.ClickException(sentence(error, ctx.params.get("db"))) from error
        except (RuntimeError, MemoryError) as error:
            # torch, of a device that is full or fails: advice on debugging follows on lines of its own.
            first_line, *_ = [*filter(None, map(str.strip, str(error).splitlines())), type(error).__name__]
            raise click.ClickException(first_line) from error


class ColbertGroup(click.Group):
    command_class = ColbertCommand


def sentence(error: Exception, db: str | None) -> str:
    """Return what went wrong, and the way out where SQLite names no way out."""
    if not isinstance(error, sqlite3.Error):
        return str(error)
    if "locked" in str(error):
        return f"{db}: another program has been writing to it for too long; try again when it is done"
    if "readonly" in str(error):
        return f"{db}: it is read-only, and this command has something to write"
    return f"{db}: {error}"


def grouped(name: str, make: Callable[..., object], *options: Decorator) -> Decorator:
    """Return one decorator for several options: the command gets one object made of them.

    :param name: the argument of the command's function that gets the object
    :param make: makes the object; its parameters are called as the options are
    """
    fields = signature(make).parameters

    def decorate(function: Function) -> Function:
        @wraps(function)
        def command(*args: object, **values: object) -> object:
            own = {field: values.pop(field) for field in fields if field in values}
            return function(*args, **{name: make(**own)}, **values)

        for option in reversed(options):
            command = option(command)
        return cast("Function", command)

    return decorate


def keywords(settings: DataclassInstance, *names: str) -> dict[str, Any]:
    """Return fields of *settings* as keyword arguments of the public API: those *names*, or all."""
    names = names or tuple(field.name for field in dataclasses.fields(settings))
    return {name: getattr(settings, name) for name in names}


def setting_option(settings: type[DataclassInstance], field: str, **attributes: Any) -> Decorator:
    """Return the option of a field of *settings*; its help is the field's own."""
    [help_] = [f.metadata["help"] for f in dataclasses.fields(settings) if f.name == field]
    return click.option(f"--{field.replace('_', '-')}", field, help=help_[0].upper() + help_[1:], **attributes)


def valid_utf8(ctx: click.Context, param: click.Parameter, value: str) -> str:
    """Return an argument whose bytes are text: no tokenizer takes what Python makes of others."""
    try:
        value.encode()
    except UnicodeEncodeError:
        raise click.BadParameter("this is not valid UTF-8") from None
    return value


def primary_key(ctx: click.Context, param: click.Parameter, value: str | None) -> PrimaryKey | None:
    """Return the key that an argument names.

    A JSON array is a key of several columns. All else is text, which SQLite compares with numbers as it compares
    numbers.
    """
    if value is None or not valid_utf8(ctx, param, value).lstrip().startswith("["):
        return value
    try:
        values = json.loads(value)
    except ValueError:
        return value
    if not values or any(isinstance(part, (bool, list, dict)) for part in values):
        raise click.BadParameter(f"a key is text or a number, or a JSON array of these, not {value}")
    return tuple(values)


db_argument = click.argument("db", type=click.Path())
index_argument = click.argument("index")
query_argument = click.argument("query", callback=valid_utf8)
pk_argument = click.argument("pk", callback=primary_key)


def param_option(owner: str) -> Decorator:
    """Return the option for the values of parameters; *owner* is the SQL that has them."""
    return click.option(
        "-p",
        "--param",
        "params",
        multiple=True,
        nargs=2,
        metavar="NAME VALUE",
        help=f"Value of a :name in {owner}, bound as text: cast(:name as integer) makes it a number",
    )


def where_option(help_: str) -> Decorator:
    return click.option("--where", metavar="SQL", help=help_)


def filter_options(help_: str) -> Decorator:
    """Return the options of a :class:`Filter`, which the command gets as ``filter``."""

    def make(where: str | None, params: tuple[tuple[str, str], ...]) -> Filter:
        return Filter(where, dict(params))

    return grouped("filter", make, where_option(help_), param_option("--where"))


def limit_option(default: int, help_: str) -> Decorator:
    return click.option("-k", "--limit", "k", type=int, default=default, show_default=True, help=help_)


mode_choice = click.Choice(get_args(Mode))
mode_option = setting_option(SearchSettings, "mode", type=mode_choice, default="colbert", show_default=True)
threshold_option = setting_option(SearchSettings, "threshold", type=float)
fusion_options = (
    setting_option(SearchSettings, "fusion", type=click.Choice(get_args(Fusion))),
    setting_option(SearchSettings, "weight", type=float),
)
nprobe_option = setting_option(SearchSettings, "nprobe", type=int)
ndocs_option = setting_option(SearchSettings, "ndocs", type=int)
plaid_options = (nprobe_option, ndocs_option)


def search_options(*options: Decorator) -> Decorator:
    """Return the decorator for options of a search: the command gets ``settings``, a :class:`SearchSettings`."""

    def make(
        k: int,
        mode: Mode,
        fusion: Fusion | None = None,
        weight: float | None = None,
        threshold: float | None = None,
        nprobe: int | None = None,
        ndocs: int | None = None,
    ) -> SearchSettings:
        refuse_fusion_without_hybrid([mode], fusion, weight)
        return SearchSettings.for_k(
            k, mode=mode, fusion=fusion, weight=weight, threshold=threshold, nprobe=nprobe, ndocs=ndocs
        )

    return grouped("settings", make, *options)


def refuse_fusion_without_hybrid(modes: Collection[Mode], fusion: Fusion | None, weight: float | None) -> None:
    if (fusion or weight is not None) and "hybrid" not in modes:
        raise click.UsageError("--fusion and --weight say how --mode hybrid joins two rankings.")


named_model_option = click.option(
    "--model", help="Short name (see colbert models), folder or hub id of a model; default: minilm"
)
moved_model_option = click.option("--model", help="Where the model is now, if not where it was when the index was made")
trust_option = click.option("--trust-remote-code", is_flag=True, help="Run Python code that comes with the model")
# The command gets them as ``options``.
model_options = grouped(
    "options",
    ModelOptions,
    click.option(
        "--backend",
        type=click.Choice(get_args(Backend)),
        default="auto",
        show_default=True,
        help="What runs the model; onnx is onnxruntime, which starts faster",
    ),
    click.option("--device", help="Where the model runs: cpu, cuda, mps; default: the best there is"),
    click.option(
        "--dtype",
        type=click.Choice(["auto", "float32", "bfloat16", "float16"]),
        default="auto",
        show_default=True,
        help="What the model computes in",
    ),
    click.option("--batch-size", type=click.IntRange(min=1), help="Passages encoded at once"),
    trust_option,
)


def refuse_model_of_several(model: str | None, indexes: Collection[str]) -> None:
    if model and len(indexes) != 1:
        raise click.UsageError("--model goes with one INDEX.")


json_option = click.option("--json", "as_json", is_flag=True, help="Output JSON")
verbose_option = click.option("-v", "--verbose", is_flag=True, help="Show time and memory of each stage at the end")
backend_verbose_option = click.option(
    "-v", "--verbose", is_flag=True, help="Say which model and backend answered, and how fast"
)
silent_option = click.option("--silent", is_flag=True, help="Show no progress and no summary")
