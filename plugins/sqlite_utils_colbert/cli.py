"""The commands: ``sqlite-utils colbert …``, the same as ``colbert-sqlite …``.

In: words of a shell. Out: data on stdout, everything else on stderr, exit code 1 and one line for an error. Leaves to
others: the commands, in modules by what they are for. sqlite-utils imports these on every command, so that each imports
the library inside its function.
"""

from __future__ import annotations

import click

from colbert_sqlite import __version__
from sqlite_utils_colbert import ask, build, evaluate, explain, rerank, search
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
    search.similar,
    explain.explain,
    rerank.rerank,
    evaluate.eval_,
    ask.ask,
    build.sync,
    build.repair,
    build.optimize,
    build.upgrade,
    build.info,
    build.list_,
    build.verify,
    build.drop,
    build.rebuild,
    build.models,
):
    colbert.add_command(command)
