"""Make notebooks of pages: their prose, and their examples as cells."""

from __future__ import annotations

import doctest
import re
from pathlib import Path

import nbformat
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

PAGES = ("tutorial", "learning_dynamics")
FENCE = re.compile(r"```python\n(.*?)```", re.DOTALL)


def notebook_of(page):
    """Return a page as a notebook; every block of code is one cell."""
    # Figures are objects; this shows one that ends a cell, once.
    cells = [new_code_cell("%matplotlib inline")]
    for k, part in enumerate(FENCE.split(Path(page).read_text())):
        if k % 2:
            examples = doctest.DocTestParser().get_examples(part)
            cells.append(new_code_cell("".join(example.source for example in examples).strip()))
        elif part.strip():
            cells.append(new_markdown_cell(part.strip()))
    for k, cell in enumerate(cells):
        # The same page gives the same file.
        cell.id = f"cell-{k}"
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    return new_notebook(cells=cells, metadata={"kernelspec": kernel})


def write_notebooks(app, error):
    if error is None and app.builder.format == "html":
        folder = Path(app.outdir) / "notebooks"
        folder.mkdir(exist_ok=True)
        for page in PAGES:
            notebook = notebook_of(Path(app.srcdir) / f"{page}.md")
            nbformat.write(notebook, folder / f"{page}.ipynb")


def setup(app):
    app.connect("build-finished", write_notebooks)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
