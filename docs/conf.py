"""How Sphinx builds the handbook."""

from __future__ import annotations

import colbert_sqlite

REPOSITORY = "https://github.com/colbert-sqlite/colbert-sqlite"

project = "colbert-sqlite"
author = "the colbert-sqlite contributors"
version = release = colbert_sqlite.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.extlinks",
    "sphinx_copybutton",
]
# Links to headings: [how](searching.md#filter-by-sql).
myst_heading_anchors = 3
myst_enable_extensions = ["colon_fence", "deflist"]
# {source}`colbert_sqlite/engine/plaid.py` is a link to that file.
extlinks = {"source": (f"{REPOSITORY}/blob/main/%s", "%s")}
extlinks_detect_hardcoded_links = True

autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
python_display_short_literal_types = True
# One argument a line where a signature is longer.
maximum_signature_line_length = 90

# Copying an example copies its commands, not the prompt and not the output.
copybutton_prompt_text = "$ "
copybutton_line_continuation_character = "\\"

html_theme = "furo"
html_static_path = ["_static"]
html_css_files = ["handbook.css"]
html_title = f"{project} {version}"
html_show_sourcelink = False
html_theme_options = {
    "source_repository": REPOSITORY,
    "source_branch": "main",
    "source_directory": "docs/",
}
