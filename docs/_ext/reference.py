"""Write the pages of the reference, `docs/api/`, before Sphinx reads them."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from sphinx.ext import autosummary

sys.path.insert(0, str(Path(__file__).parent))

from topics import FACES, GROUPS, face_of, names_by_topic


def heading(text, mark):
    return f"{text}\n{mark * len(text)}\n\n"


def page_of(topic, names):
    """Return the page of a topic: one table, whose names have pages of their own."""
    text = heading(topic.title, "=")
    if topic.about:
        text += f"{topic.about}\n\n"
    if topic.face != "dln_geometry":
        text += f"In ``{topic.face}``.\n\n"
    text += ".. autosummary::\n   :toctree: names\n   :nosignatures:\n\n"
    return text + "".join(f"   ~{name}\n" for name in names)


def index_of(filled):
    text = heading("API reference", "=")
    text += (
        "By topic, from the docstrings. Every example works as pasted after ``import torch`` and "
        "``import dln_geometry as dln``.\n\n"
    )
    for group, files in GROUPS.items():
        text += heading(group, "-") + ".. toctree::\n   :maxdepth: 1\n\n"
        text += "".join(f"   {file}\n" for file in files if file in filled) + "\n"
    return text


def write(path, text):
    """Keep a file that is the same, so that Sphinx does not read it again."""
    if not path.exists() or path.read_text() != text:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def write_pages(folder):
    for face in FACES:
        # Some faces are attributes of the package: autodoc imports them like modules.
        sys.modules.setdefault(face, face_of(face))
    places = {topic: names for topic, names in names_by_topic().items() if topic and names}
    for topic, names in places.items():
        write(folder / f"{topic.file}.rst", page_of(topic, sorted(names, key=str.lower)))
    write(folder / "index.rst", index_of({topic.file for topic in places}))
    known = {f"{topic.file}.rst" for topic in places} | {"index.rst"}
    for stale in folder.glob("*.rst"):
        if stale.name not in known:
            stale.unlink()
    names = {name for found in places.values() for name in found}
    for stale in (folder / "names").glob("*.rst"):
        if stale.stem not in names:
            stale.unlink()


def name_pages(app, config):
    """Let autosummary read these pages also where an earlier build did not know them."""
    folder = Path(app.srcdir) / "api"
    config.autosummary_generate = [f"api/{page.name}" for page in sorted(folder.glob("*.rst"))]


def is_foreign(app, what, name, member, skip, options):
    """Leave out what a host or scikit-learn adds to our classes: they document it."""
    module = getattr(member, "__module__", None)
    if isinstance(module, str) and module.split(".")[0] not in ("dln_geometry", "manifolds"):
        return True
    return None


def without_markup(text):
    """Keep stars and bars outside of literals as they are: ``(*size, n)``, ``|x|``."""
    parts = re.split(r"(``.*?``|`[^`]+`)", text)
    parts[::2] = [re.sub(r"(?<!\\)([*|])", r"\\\1", part) for part in parts[::2]]
    return "".join(parts)


def escape(app, what, name, obj, options, lines):
    """Treat the prose of a docstring as plain text, and leave its examples as they are."""
    example = False
    for k, line in enumerate(lines):
        example = line.strip().startswith(">>>") or (example and bool(line.strip()))
        if not example:
            lines[k] = without_markup(line)


def first_line(doc, document):
    """Return the first line of a docstring, which says what a name is."""
    return without_markup(next((line for line in doc if line.strip()), ""))


def setup(app):
    app.setup_extension("sphinx.ext.autodoc")
    # The one of Sphinx ends a sentence at the dots of ``(..., m, n)``.
    autosummary.extract_summary = first_line
    # Before numpydoc (500), which makes markup of its own.
    app.connect("autodoc-process-docstring", escape, priority=100)
    # Now, and not at an event: autosummary reads the names off the pages that Sphinx found first.
    write_pages(Path(app.srcdir) / "api")
    app.connect("config-inited", name_pages)
    app.connect("autodoc-skip-member", is_foreign)
    return {"parallel_read_safe": True}
