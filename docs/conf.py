"""The site: README and docs/*.md as they are, executed notebooks, and the API from docstrings.

    scripts/docs.sh

The source folder is the repository, so that the documents' relative links hold here as they do on GitHub. Links to files of
the repository become downloads.
"""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
project = "cfmlc_jax"
author = copyright = "the cfmlc_jax authors"
extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
]
root_doc = "README"
include_patterns = [
    "README.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "docs/*.md",
    "docs/evidence/*.md",
    "docs/api/*.rst",
    "docs/notebooks/*.ipynb",
    "cfmlc_jax/data/assets/NOTICE.md",
]
exclude_patterns = [".*", "build", "data", "runs", "tests", "**/__pycache__"]
html_theme = "furo"
html_title = "cfmlc_jax"
html_copy_source = html_show_sourcelink = False
# Flags keep their two hyphens.
smartquotes = False
# Blocks without a language are commands or their output.
highlight_language = "none"
# Docstrings have `names` in single backticks.
default_role = "code"
python_use_unqualified_type_names = True
autodoc_member_order = "bysource"
# A default is shown as it is written, not as the table that it names.
autodoc_preserve_defaults = True
autodoc_default_options = {"members": True}
napoleon_use_ivar = True
# Anchors of headings as GitHub makes them.
myst_heading_anchors = 4
# The notebooks were executed by scripts/run_notebooks.py.
nb_execution_mode = "off"
# Tables too.
nb_render_markdown_format = "myst"

# The pages of the site beside README, which is its first.
CONTENTS = """

```{toctree}
:hidden:
:caption: Start
docs/notebooks/fine_tune
docs/notebooks/look_inside
docs/python
docs/data
docs/weights
docs/runs
docs/decisions
docs/export
```

```{toctree}
:hidden:
:caption: Methods
docs/patches
docs/long_tails
docs/generators
docs/glossary
docs/differences
```

```{toctree}
:hidden:
:caption: Measured
docs/evidence
docs/patches_at_cost
docs/evidence/results
docs/parity
docs/speed
docs/memory
docs/scale
docs/reliability
```

```{toctree}
:hidden:
:caption: Machines
docs/clusters
docs/buckets
docs/trackers
docs/security
```

```{toctree}
:hidden:
:caption: Code
docs/tour
docs/fork
docs/api/index
CONTRIBUTING
CHANGELOG
cfmlc_jax/data/assets/NOTICE
```
"""
LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s#]+)\)")
# What begins the description of a field in a class's docstring.
FIELD = re.compile(r"[a-z_]+(, [a-z_]+)*: ")
TABLE_RULE = re.compile(r"\s*=+( +=+)+$")


def complete_source(app, docname, source):
    """README gets the contents of the site; links to folders, which no page shows, become text."""
    folder = (ROOT / docname).parent

    def without_folder(link):
        bang, text, target = link.groups()
        return text if not bang and (folder / target).is_dir() else link[0]

    if docname in app.env.found_docs and (ROOT / f"{docname}.md").exists():
        source[0] = LINK.sub(without_folder, source[0])
    if docname == root_doc:
        source[0] += CONTENTS


def complete_docstring(app, what, name, obj, options, lines):
    """Fields of a class become its attributes."""
    lines[:] = _plain(lines)
    if what != "class":
        return
    start = next((i for i, line in enumerate(lines) if FIELD.match(line) and not lines[i - 1].strip()), None)
    if start is None:
        return
    end = next((i for i in range(start, len(lines)) if not lines[i].strip()), len(lines))
    lines[start:end] = ["Attributes:", *(f"    {line}" for line in lines[start:end])]


def _plain(lines):
    """The lines outside of tables so that bars, stars and a last underscore are no markup, and plurals of `names`s are."""
    rules = [i for i, line in enumerate(lines) if TABLE_RULE.match(line)]
    table = range(rules[0], rules[-1]) if rules else ()
    return [line if i in table else _plain_line(line) for i, line in enumerate(lines)]


def _plain_line(line):
    parts = re.split(r"(`[^`]*`)", line)
    parts[::2] = [re.sub(r"([|*]|(?<=\w)_(?!\w))", r"\\\1", part) for part in parts[::2]]
    for i in range(2, len(parts), 2):
        if re.match(r"\w", parts[i]):
            parts[i] = f"\\ {parts[i]}"
    return "".join(parts)


def skip_member(app, what, name, obj, skip, options):
    """Fields of a named tuple are in its docstring."""
    return True if type(obj).__name__ == "_tuplegetter" else None


def write_index(app, exception):
    """The address of the site itself leads to its first page."""
    if exception is None and app.builder.name == "html":
        page = f'<!doctype html><meta charset="utf-8"><meta http-equiv="refresh" content="0; url={root_doc}.html">\n'
        (Path(app.outdir) / "index.html").write_text(page, encoding="utf-8")


def setup(app):
    """Connects these functions."""
    app.connect("source-read", complete_source)
    # Before napoleon reads the sections.
    app.connect("autodoc-process-docstring", complete_docstring, priority=400)
    app.connect("autodoc-skip-member", skip_member)
    app.connect("build-finished", write_index)
