"""The commands about models: models, and models export.

In: names of models. Out: a list of them; folders of exported models. Leaves to others: finding, loading and exporting
(the library).
"""

from __future__ import annotations

import dataclasses
import shlex
from pathlib import Path

import click

from sqlite_utils_colbert.options import ColbertGroup, json_option, trust_option
from sqlite_utils_colbert.output import print_rows, print_table


@click.group(cls=ColbertGroup, invoke_without_command=True)
@json_option
@click.pass_context
def models(ctx: click.Context, /, as_json: bool) -> None:
    """List the models that have a short name, or export a model

    The --model of an index may also be any folder, or any repository on the hub, that holds a ColBERT model.

    Example:

    \b
        sqlite-utils colbert models
    """
    if ctx.invoked_subcommand:
        return
    from colbert_sqlite import known_models

    rows = known_models()
    if as_json:
        print_rows([dataclasses.asdict(model) for model in rows])
        return
    print_table(
        [
            {
                "model": model.alias,
                "dim": model.dim,
                "parameters": f"{model.parameters / 1e6:.1f} M" if model.parameters else "",
                "size": f"{model.megabytes} MB" if model.megabytes else "",
                "on this machine": "yes" if model.on_this_machine else "no",
                "from": model.source,
            }
            for model in rows
        ]
    )


@models.command()
@click.argument("name")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--int8", is_flag=True, help="Keep the weights in eight bits: smaller and faster, and a little worse")
@trust_option
def export(name: str, folder: Path, int8: bool, trust_remote_code: bool) -> None:
    """Write a model to a new folder that runs without torch

    On another machine, pip install 'colbert-sqlite[onnx]' is then enough to search and to index with --model FOLDER. An
    index made with NAME can be searched with FOLDER, and the other way round. An int8 export gives other embeddings, so
    that it is a model of its own, for indexes made with it.

    Example:

    \b
        sqlite-utils colbert models export minilm minilm-onnx
    """
    from colbert_sqlite import export_model

    export_model(name, folder, int8=int8, trust_remote_code=trust_remote_code)
    megabytes = sum(path.stat().st_size for path in folder.iterdir()) / 1e6
    click.echo(f"Wrote {name} to {folder}, {megabytes:.0f} MB. Use it: --model {shlex.quote(str(folder))}", err=True)
