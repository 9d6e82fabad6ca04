"""The site: `make docs` builds it into build/docs.

The source is the whole checkout, so that links between pages, notebooks and files are the same here and on GitHub. What
a page links to and is no page (a result, a script, a folder of either) is copied along.
"""

from __future__ import annotations

import argparse
import html
import os
import re
import shutil
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from docutils import nodes
from docutils.utils.math import MathError, latex2mathml
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.transforms import SphinxTransform
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective

import keras_resnets
from keras_resnets.cli import _parser

logger = logging.getLogger(__name__)
ROOT = Path(__file__).parent.parent
FILES = "files"  # in the built site: what pages link to
SHOWN = {".json", ".png", ".html", ".csv", ".md"}  # by browsers, as they are; other files get a .txt behind their name

project = "keras_resnets"
copyright = "the authors of keras_resnets, Apache 2.0"
version = release = keras_resnets.__version__

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.autosummary", "sphinx.ext.napoleon"]
root_doc = "docs/index"
include_patterns = ["docs/**", "notebooks/*.ipynb", "README*.md", "CONTRIBUTING.md", "CHANGELOG.md"]
exclude_patterns = [".venv", "build", "**/.ipynb_checkpoints"]

myst_enable_extensions = ["deflist", "dollarmath"]
myst_heading_anchors = 3
nb_execution_mode = "off"  # the outputs are those that the notebooks hold
nb_merge_streams = True
nb_render_markdown_format = "myst"  # which has tables, for outputs too
suppress_warnings = ["myst.header"]  # a README may begin where it likes

highlight_language = "sh"  # a fence without a language holds commands
# The docstrings' `code` is Markdown's, their |a − b| no substitution, and their sections are Google's.
default_role = "code"
autodoc_typehints = "signature"
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True}
autosummary_generate = False
python_use_unqualified_type_names = True
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False

html_math_renderer = "mathml"  # browsers draw it; MathJax would come over the network
html_theme = "furo"
html_title = f"keras_resnets {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sphinx = False


class LinkedFiles(SphinxTransform):
    """Turns links to files and folders of the checkout that are no pages into links to their copies."""

    default_priority = 5  # before anything asks what these links lead to

    def apply(self, **_: Any) -> None:
        for node in [
            *self.document.findall(addnodes.download_reference),
            *self.document.findall(addnodes.pending_xref),
        ]:
            if node.get("reftype") != "myst" or node.get("refdomain") == "doc":
                continue
            source = (ROOT / self.env.docname).parent / unquote(node["reftarget"].partition("#")[0])
            source = Path(os.path.normpath(source))
            if node["reftarget"].startswith("#") or not source.exists() or not source.is_relative_to(ROOT):
                continue
            up = "../" * self.env.docname.count("/")
            link = nodes.reference("", "", refuri=f"{up}{FILES}/{linked(source)}", internal=False)
            link += [nodes.inline("", "", *child.children) for child in node.children]
            node.replace_self(link)
            self.env.app.linked_files.add(source)  # type: ignore[attr-defined]


def linked(source: Path) -> str:
    """Where the copy of a file or folder lies, from the folder of copies."""
    name = source.relative_to(ROOT).as_posix()
    if source.is_dir():
        return f"{name}/index.html"
    return name if source.suffix in SHOWN else f"{name}.txt"


def copy_linked_files(app: Sphinx, failure: Exception | None) -> None:
    """Copy what is linked to, with a list of its files into each folder; and lead from / to the first page."""
    if failure or app.builder.format != "html":
        return
    for source in sorted(app.linked_files):  # type: ignore[attr-defined]
        files = [file for file in sorted(source.rglob("*")) if file.is_file()] if source.is_dir() else [source]
        for file in files:
            copy = app.outdir / FILES / linked(file)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, copy)
        if source.is_dir():
            write_list(source, files, app.outdir / FILES / linked(source))
    target = f"{root_doc}.html"
    (app.outdir / "index.html").write_text(
        f'<!doctype html><meta charset="utf-8"><meta http-equiv="refresh" content="0; url={target}">'
        f'<title>{html_title}</title><a href="{target}">{html_title}</a>\n',
        encoding="utf-8",
    )


def write_list(folder: Path, files: list[Path], page: Path) -> None:
    """Write the list of a folder's files."""
    name = folder.relative_to(ROOT).as_posix()
    here = page.parent
    rows = "".join(
        f'<li><a href="{html.escape(os.path.relpath(here.parents[len(Path(name).parts) - 1] / linked(file), here))}">'
        f"{html.escape(file.relative_to(folder).as_posix())}</a></li>"
        for file in files
    )
    page.write_text(
        '<!doctype html><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>{name}</title><body style='font: 1rem/1.6 sans-serif; margin: 2rem; overflow-wrap: anywhere'>"
        f"<h1>{name}</h1><ul>{rows}</ul>\n",
        encoding="utf-8",
    )


class CommandLine(SphinxDirective):
    """The reference of the program's commands, from its own parser."""

    def run(self) -> list[nodes.Node]:
        os.environ["COLUMNS"] = "100"  # of usage lines, whatever terminal this runs in
        text = "\n".join(described(_parser(), "keras-resnets"))
        self.content = type(self.content)(text.splitlines(), self.get_source_info()[0])
        return self.parse_content_to_nodes(allow_section_headings=True)


def described(parser: argparse.ArgumentParser, name: str, depth: int = 2) -> Iterator[str]:
    """A parser and those of its commands, in Markdown."""
    yield from (f"{'#' * depth} {name}", "", plain(parser.description or ""), "")
    yield from ("```text", re.sub(r"^usage: ", "", parser.format_usage().strip()), "```", "")
    commands = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    for group in parser._action_groups:
        actions = [a for a in group._group_actions if a not in commands and a.help != argparse.SUPPRESS]
        if [action.dest for action in actions] in ([], ["help"]):
            continue
        if group.title not in ("positional arguments", "options"):
            yield from (f"**{plain(group.title or '')}**", "", plain(group.description or ""), "")
        for action in actions:
            if action.dest != "help":
                yield from (spelled(parser, action), f": {meaning(parser, action)}", "")
    if parser.epilog:
        yield from ("```text", textwrap.dedent(parser.epilog.replace("examples:\n", "")).rstrip(), "```", "")
    for action in commands:
        for command, child in action.choices.items():
            yield from described(child, f"{name} {command}", min(depth + 1, 3))


def spelled(parser: argparse.ArgumentParser, action: argparse.Action) -> str:
    """How an option is written: `--top N`."""
    shape = parser._get_formatter()
    if not action.option_strings:
        return f"`{shape._metavar_formatter(action, action.dest)(1)[0]}`"
    value = (
        "" if action.nargs == 0 else " " + shape._format_args(action, shape._get_default_metavar_for_optional(action))
    )
    return ", ".join(f"`{flag}{value}`" for flag in action.option_strings)


def meaning(parser: argparse.ArgumentParser, action: argparse.Action) -> str:
    """An option's help, and what it has none of: a field of a recipe is described with that."""
    if action.help:
        return plain(parser._get_formatter()._expand_help(action))
    return f"the recipe's `{action.dest}`"


def plain(text: str) -> str:
    """Text of the parser as Markdown: its `code` stays, the rest has no meaning there."""
    parts = text.split("`")
    return "`".join(part if i % 2 else re.sub(r"([\\*_<>\[\]$])", r"\\\1", part) for i, part in enumerate(parts))


def write_mathml(translator: Any, node: nodes.Element) -> None:
    """Write a formula, $…$ or $$…$$, as MathML."""
    formula = re.sub(r"\\dots\b", r"\\ldots", node.astext())
    try:
        text = latex2mathml.tex2mathml(formula, as_block=isinstance(node, nodes.math_block))
    except MathError as error:
        logger.warning("no MathML for the formula %s: %s", formula, error, location=node)
        text = f"<code>{html.escape(formula)}</code>"
    translator.body.append(text)
    raise nodes.SkipNode


def adapt_docstring(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Keeps reStructuredText from finding in a docstring what is not meant."""
    lines[:] = [re.sub(r"\|(a( − b)?)\|", r"\\|\1\\|", line) for line in lines]  # a substitution
    if what == "property" and lines:
        lines[0] = lines[0].replace(": ", "; ")  # a type


def setup(app: Sphinx) -> None:
    app.linked_files = set()  # type: ignore[attr-defined]
    app.add_transform(LinkedFiles)
    app.add_html_math_renderer("mathml", (write_mathml, None), (write_mathml, None))
    app.add_directive("command-line", CommandLine)
    app.connect("autodoc-process-docstring", adapt_docstring, priority=400)  # before Napoleon
    app.connect("build-finished", copy_linked_files)
