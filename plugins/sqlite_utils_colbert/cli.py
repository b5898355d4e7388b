"""The commands: ``sqlite-utils colbert …``, the same as ``colbert-sqlite …``.

In: words of a shell. Out: data on stdout, all else on stderr; exit code 1 and one line for an error. Leaves to others:
the commands (those that create an index in build.py, those that keep one in sync.py, those that look at one in
inspect.py, the others in files of their names). sqlite-utils imports these with every command of its own, so each
imports the library inside its function.
"""

from __future__ import annotations

import click

from colbert_sqlite import __version__
from sqlite_utils_colbert import ask, build, evaluate, explain, inspect, models, rerank, search, similar, sync
from sqlite_utils_colbert.options import ColbertGroup


@click.group(cls=ColbertGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="colbert-sqlite")
def colbert() -> None:
    """Search the rows of a table by meaning, with a ColBERT index in the same database

    Make an index, then ask it something:

    \b
        sqlite-utils colbert index blog.db posts body --heading title
        sqlite-utils colbert search blog.db posts 'bread that stays flat' -t

    colbert-sqlite is a shorter way to write sqlite-utils colbert.
    """


for command in (
    build.index,
    search.search,
    similar.similar,
    explain.explain,
    rerank.rerank,
    evaluate.evaluate,
    ask.ask,
    sync.sync,
    sync.repair,
    sync.optimize,
    build.upgrade,
    inspect.info,
    inspect.list_,
    inspect.verify,
    build.drop,
    build.rebuild,
    models.models,
):
    colbert.add_command(command)
