"""Sphinx: the pages of docs/, the notebooks, the change log, and the reference from docstrings.

The source folder is the root of the repository, so that a link from one file to another holds here as it does
on a code host. ``GRIDRAD_CUBE_DOCS_EXECUTE=off`` leaves the notebooks as they are in git, without output.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import pkgutil
import re
from pathlib import Path
from typing import Any

from sphinx.pycode import ModuleAnalyzer

import gridrad_cube

HERE = Path(__file__).resolve().parent

project = "gridrad-cube"
author = "The gridrad-cube developers"
copyright = "The gridrad-cube developers, Apache-2.0"
release = version = importlib.metadata.version("gridrad-cube")

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
]
root_doc = "docs/index"
include_patterns = [
    "docs/*.md",
    "docs/api/*",
    "notebooks/*.ipynb",
    "notebooks/README.md",
    "benchmarks/results/*.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "SECURITY.md",
]
exclude_patterns = [".*", "**/.*", "docs/_*", "build", "demo", "gridrad_cube", "tests", "deploy"]
templates_path = [str(HERE / "_templates")]  # whole, since autosummary looks from the source folder

# Markdown. Headings are link targets, as on a code host.
myst_heading_anchors = 4
myst_enable_extensions = ["dollarmath"]

# Notebooks have no output in git; they are run here, and again only when they change.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # threads that spin bring a busy machine to a crawl
nb_execution_mode = os.environ.get("GRIDRAD_CUBE_DOCS_EXECUTE", "cache")
nb_execution_cache_path = str(HERE / "_build" / "notebooks")
nb_execution_timeout = 240
nb_execution_raise_on_error = True
nb_merge_streams = True
nb_output_stderr = "remove"  # logs of worker processes; the tests look for warnings
nb_mime_priority_overrides = [("html", "application/vnd.jupyter.widget-view+json", None)]

# Reference.
autosummary_generate = True
autosummary_ignore_module_all = False
autosummary_imported_members = True
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 100
napoleon_google_docstring = False
napoleon_use_rtype = False
napoleon_preprocess_types = False
default_role = "autolink"
toc_object_entries_show_parents = "hide"
suppress_warnings = ["config.cache"]

html_theme = "pydata_sphinx_theme"
html_title = "gridrad-cube"
html_static_path = ["_static"]
html_css_files = ["gridrad.css"]
highlight_language = "none"  # of a block that names none
html_copy_source = False
html_show_sourcelink = False
html_additional_pages = {"index": "start.html"}
html_theme_options = {
    "show_nav_level": 1,
    "navigation_depth": 2,
    "header_links_before_dropdown": 5,
    "show_prev_next": False,
    "secondary_sidebar_items": ["page-toc"],
    "footer_start": ["copyright"],
    "footer_end": [],
}
html_sidebars = {"docs/index": [], "docs/cube-format": []}
html_context = {"default_mode": "auto"}

_LINK = re.compile(r"\[([^\]]+)\]\(([^)#:\s]+)\.(?:md|ipynb)\)")


def list_links(app: Any, page: str, text: list[str]) -> None:
    """Make the table of contents under ``<!-- toctree -->`` of the links above it, so that pages stay Markdown."""
    above, mark, below = text[0].partition("<!-- toctree -->")
    if mark:
        entries = "\n".join(f"{title} <{target}>" for title, target in dict.fromkeys(_LINK.findall(above)))
        text[0] = f"{above}\n```{{toctree}}\n:hidden:\n\n{entries}\n```\n{below}"


def say_what_is_returned(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Give Napoleon the text under ``Returns`` as text of a value without name and type, which the signature has."""
    for number in range(len(lines) - 2):
        if lines[number] in ("Returns", "Yields") and _is_underline(lines[number + 1]):
            start = number + 2
            end = next((i for i in range(start, len(lines) - 1) if _is_underline(lines[i + 1])), len(lines))
            lines[start:end] = [":", *(f"    {line}".rstrip() for line in lines[start:end])]


def _is_underline(line: str) -> bool:
    return len(line) > 2 and set(line) == {"-"}


def lend_comments(app: Any) -> None:
    """Give packages the ``#:`` comments of the constants that they pass on, which autodoc seeks in their own file."""
    for found in pkgutil.iter_modules(gridrad_cube.__path__, "gridrad_cube."):
        if found.ispkg:
            package = importlib.import_module(found.name)
            passed_on = vars(package).get("__all__", ())
            own = ModuleAnalyzer.for_module(found.name)
            own.analyze()
            for inner in pkgutil.iter_modules(package.__path__, f"{found.name}."):
                analyzer = ModuleAnalyzer.for_module(inner.name)
                analyzer.analyze()
                comments = analyzer.attr_docs.items()
                own.attr_docs |= {key: text for key, text in comments if not key[0] and key[1] in passed_on}


def setup(app: Any) -> None:
    """Register what this file adds."""
    app.connect("builder-inited", lend_comments)
    app.connect("source-read", list_links)
    app.connect("autodoc-process-docstring", say_what_is_returned, priority=100)
