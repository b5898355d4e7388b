"""Build the sample blog's database from its posts.

    python sample_data/build.py [OUT] [--replace]

In: posts/SUBJECT/SLUG.md beside this file: front matter (title, created, tags) and a body in Markdown or HTML.
Out: a SQLite database, by default blog.db beside this file, with the tables posts, tags and post_tags. A file
that is there is replaced only if asked, in one step; equal posts give equal rows and ids.
"""

from __future__ import annotations

import argparse
import os
import sqlite3
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).resolve().parent

SCHEMA = """
create table posts (
    id integer primary key,
    slug text not null unique,
    title text not null,
    subject text not null,
    created text not null,
    body text not null
);
create table tags (
    id integer primary key,
    name text not null unique
);
create table post_tags (
    post_id integer not null references posts(id),
    tag_id integer not null references tags(id),
    primary key (post_id, tag_id)
);
"""


class Post(NamedTuple):
    created: str
    slug: str
    title: str
    subject: str
    body: str
    tags: list[str]


def read_post(path: Path) -> Post:
    """The post in one file.

    :raises ValueError: if the front matter is missing or incomplete
    """
    opening, _, rest = path.read_text("utf-8").partition("---\n")
    front, closing, body = rest.partition("\n---\n")
    if opening or not closing:
        raise ValueError(f"{path}: front matter between two lines --- is missing")
    fields = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in front.splitlines())}
    if missing := [key for key in ("title", "created", "tags") if not fields.get(key)]:
        raise ValueError(f"{path}: no {' and no '.join(missing)} in the front matter")
    return Post(
        created=fields["created"],
        slug=path.stem,
        title=fields["title"],
        subject=path.parent.name,
        body=body.strip(),
        tags=sorted({tag.strip() for tag in fields["tags"].split(",")}),
    )


def build(out: Path) -> int:
    """Number of posts written to *out*."""
    posts = sorted(read_post(path) for path in HERE.glob("posts/*/*.md"))
    tag_ids = {tag: number for number, tag in enumerate(sorted({tag for post in posts for tag in post.tags}), start=1)}
    unfinished = out.with_name(out.name + ".unfinished")
    unfinished.unlink(missing_ok=True)
    db = sqlite3.connect(unfinished)
    try:
        with db:
            db.executescript(SCHEMA)
            db.executemany("insert into tags (id, name) values (?, ?)", ((id_, tag) for tag, id_ in tag_ids.items()))
            for post_id, post in enumerate(posts, start=1):
                db.execute(
                    "insert into posts (id, slug, title, subject, created, body) values (?, ?, ?, ?, ?, ?)",
                    (post_id, post.slug, post.title, post.subject, post.created, post.body),
                )
                db.executemany(
                    "insert into post_tags (post_id, tag_id) values (?, ?)",
                    ((post_id, tag_ids[tag]) for tag in post.tags),
                )
    finally:
        db.close()
    os.replace(unfinished, out)
    return len(posts)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Build the sample blog's database from its posts.")
    parser.add_argument(
        "out", nargs="?", type=Path, default=HERE / "blog.db", help="file to write; default: %(default)s"
    )
    parser.add_argument("--replace", action="store_true", help="replace a file that is there, whatever it holds")
    arguments = parser.parse_args()
    if arguments.out.exists() and not arguments.replace:
        parser.exit(1, f"{arguments.out} exists already: choose another name, or replace it with --replace\n")
    print(f"{arguments.out}: {build(arguments.out)} posts")
