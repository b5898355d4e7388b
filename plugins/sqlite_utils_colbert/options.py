"""What the commands have in common: their options and arguments, and how an error becomes one line.

In: the functions of the other modules. Out: click commands of them. Leaves to others: what the commands do.
"""

from __future__ import annotations

import dataclasses
import json
import sqlite3
from collections.abc import Callable, Collection
from typing import Any, TypeVar, get_args

import click

from colbert_sqlite import ColbertError, SearchSettings
from colbert_sqlite.settings import Fusion

Function = TypeVar("Function", bound=Callable[..., Any])


class ColbertCommand(click.Command):
    """Says what went wrong in one line."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (BrokenPipeError, click.exceptions.Exit, click.Abort):
            raise
        except (sqlite3.Error, ColbertError, ValueError, OSError) as error:
            raise click.ClickException(sentence(error, ctx.params.get("db"))) from error
        except (RuntimeError, MemoryError) as error:
            # What torch says of a device that is full or fails; advice on debugging it follows on lines of its own.
            first_line, *_ = [*filter(None, map(str.strip, str(error).splitlines())), type(error).__name__]
            raise click.ClickException(first_line) from error


def sentence(error: Exception, db: str | None) -> str:
    """What went wrong, and the way out where SQLite's own words have none."""
    if not isinstance(error, sqlite3.Error):
        return str(error)
    if "locked" in str(error):
        return f"{db}: another program has been writing to it for too long; try again when it is done"
    if "readonly" in str(error):
        return f"{db}: it is read-only, and this command has something to write"
    return f"{db}: {error}"


class ColbertGroup(click.Group):
    command_class = ColbertCommand


def setting_option(settings: type[Any], field: str, *flags: str, **attributes: Any) -> Callable[[Function], Function]:
    """An option for a field of *settings*, described in that field's own words."""
    [help_] = [f.metadata["help"] for f in dataclasses.fields(settings) if f.name == field]
    return click.option(
        *(flags or (f"--{field.replace('_', '-')}",)), field, help=help_[0].upper() + help_[1:], **attributes
    )


def valid_utf8(ctx: click.Context, param: click.Parameter, value: str) -> str:
    """The text of an argument, unless its bytes are none: no tokenizer takes what Python makes of them."""
    try:
        value.encode()
    except UnicodeEncodeError:
        raise click.BadParameter("this is not valid UTF-8") from None
    return value


def primary_key(ctx: click.Context, param: click.Parameter, value: str) -> Any:
    """The key that an argument names: of several columns as a JSON array, else the text itself, which SQLite compares
    with numbers as it compares numbers.
    """
    text = valid_utf8(ctx, param, value)
    if not text.lstrip().startswith("["):
        return text
    try:
        values = json.loads(text)
    except ValueError:
        return text
    if not values or any(isinstance(part, (bool, list, dict)) for part in values):
        raise click.BadParameter(f"a key is text or a number, or a JSON array of these, not {text}")
    return tuple(values)


def param_option(place: str) -> Callable[[Function], Function]:
    return click.option(
        "-p",
        "--param",
        "params",
        multiple=True,
        nargs=2,
        metavar="NAME VALUE",
        help=f"Value of a :name in {place}, bound as text: cast(:name as integer) makes it a number",
    )


def where_options(help_: str) -> Callable[[Function], Function]:
    def decorate(function: Function) -> Function:
        return click.option("--where", metavar="SQL", help=help_)(param_option("--where")(function))

    return decorate


def fusion_options(function: Function) -> Function:
    weight = setting_option(SearchSettings, "weight", type=float)
    return setting_option(SearchSettings, "fusion", type=click.Choice(get_args(Fusion)))(weight(function))


def plaid_options(function: Function) -> Function:
    ndocs = setting_option(SearchSettings, "ndocs", type=int)
    return setting_option(SearchSettings, "nprobe", type=int)(ndocs(function))


def refuse_fusion_without_hybrid(modes: Collection[str | None], fusion: str | None, weight: float | None) -> None:
    if (fusion or weight is not None) and "hybrid" not in modes:
        raise click.UsageError("--fusion and --weight say how --mode hybrid joins two rankings.")


def model_options(function: Function) -> Function:
    for option in (
        click.option("--trust-remote-code", is_flag=True, help="Run Python code that comes with the model"),
        click.option("--batch-size", type=click.IntRange(min=1), help="Passages encoded at once"),
        click.option(
            "--dtype",
            type=click.Choice(["auto", "float32", "bfloat16", "float16"]),
            default="auto",
            show_default=True,
            help="What the model computes in",
        ),
        click.option("--device", help="Where the model runs: cpu, cuda, mps; default: the best there is"),
        click.option(
            "--backend",
            type=click.Choice(["auto", "torch", "onnx"]),
            default="auto",
            show_default=True,
            help="What runs the model; onnx is onnxruntime, which starts faster",
        ),
    ):
        function = option(function)
    return function


named_model_option = click.option(
    "--model", help="Short name (see colbert models), folder or hub id of a model; default: minilm"
)
moved_model_option = click.option("--model", help="Where the model is now, if not where it was when the index was made")
db_argument = click.argument("db", type=click.Path())
index_argument = click.argument("index")
pk_argument = click.argument("pk", callback=primary_key)
json_option = click.option("--json", "as_json", is_flag=True, help="Output JSON")
verbose_option = click.option("-v", "--verbose", is_flag=True, help="Show time and memory of each stage at the end")
silent_option = click.option("--silent", is_flag=True, help="Show no progress and no summary")
