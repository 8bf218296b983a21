"""How Sphinx builds these pages into a site: `make docs`.

The rule: a page reads well on a code host too. Links are plain relative Markdown; what they mean on the site is decided here.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

from sphinx.application import Sphinx

import nanogrid

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent

project = "NanoGrid"
author = "the NanoGrid authors"
version = release = nanogrid.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc"]
exclude_patterns = ["pictures/*.py"]
myst_heading_anchors = 4
nitpicky = False
highlight_language = "none"
default_role = "code"
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_default_options = {"exclude-members": "model_config, model_post_init"}
python_maximum_signature_line_length = 80

html_theme = "furo"
html_title = "NanoGrid"
html_show_sphinx = False
html_copy_source = False
html_show_copyright = False

PAGES_FROM_THE_ROOT = {"changelog": "CHANGELOG.md", "contributing": "CONTRIBUTING.md"}
"""Pages whose text is a file beside `docs/`."""

README_SECTIONS = {"request": "docs/reference/request.md", "result": "docs/reference/result.md"}
"""Where a link to a section of the README leads on the site, which has another first page."""

INDEX_OF_DECISIONS = "decisions/README"
DECISIONS = """
```{toctree}
:hidden:
:glob:

0*
```
"""

FENCE = re.compile(r"(^```.*?^```\n?)", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"(?<!!)\[((?:[^\[\]\n]|\n(?!\n))*)\]\(([^)\s]+)\)")


def read_page(_app: Sphinx, page: str, text: list[str]) -> None:
    """Replace a page's text by that of a file beside `docs/`, and make each link one that the site has."""
    folder = posixpath.join("docs", posixpath.dirname(page))
    if page in PAGES_FROM_THE_ROOT:
        text[0] = (ROOT / PAGES_FROM_THE_ROOT[page]).read_text()
        folder = ""
    if page == INDEX_OF_DECISIONS:
        text[0] += DECISIONS
    text[0] = "".join(
        part if number % 2 else LINK.sub(lambda link: site_link(link[1], link[2], folder), part)
        for number, part in enumerate(FENCE.split(text[0]))
    )


def site_link(label: str, target: str, folder: str) -> str:
    """A link of a page in `folder` as the site has it: to a page, or to a copy of a file. A folder has none: its name is shown."""
    if "://" in target or target.startswith("#"):
        return f"[{label}]({target})"
    path, _, anchor = target.partition("#")
    path = posixpath.normpath(posixpath.join(folder, path))
    if path == "README.md":
        path, anchor = README_SECTIONS.get(anchor, "docs/index.md"), ""
    for page, source in PAGES_FROM_THE_ROOT.items():
        if path == source:
            path = f"docs/{page}.md"
    if path.startswith("docs/") and path.endswith(".md"):
        return f"[{label}](/{path.removeprefix('docs/')}{'#' + anchor if anchor else ''})"
    if (ROOT / path).is_dir():
        return label
    return f"[{label}](path:/../{path})"


def setup(app: Sphinx) -> None:
    """Called by Sphinx."""
    app.connect("source-read", read_page)
