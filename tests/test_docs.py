from __future__ import annotations

import doctest
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
sys.path.insert(0, str(DOCS / "_ext"))

import topics  # noqa: E402 - a file of the documentation


def test_every_public_name_is_on_a_page_of_the_reference():
    places = topics.names_by_topic()
    assert not places.pop(None), "give these names a topic in docs/_ext/topics.py"
    assert sum(map(len, places.values())) == len(topics.public_names()) > 200


def test_every_topic_is_in_the_index_once():
    files = [file for group in topics.GROUPS.values() for file in group]
    assert sorted(files) == sorted(topic.file for topic in topics.TOPICS)
    assert len(files) == len(set(files))


def test_every_public_function_and_class_has_an_example():
    """The examples themselves run with the docstrings, by `conftest.py` as they are pasted."""
    docs = {
        # A class has a docstring of its own: it must not take its parent's example.
        name: vars(value).get("__doc__") if isinstance(value, type) else value.__doc__
        for name, value in topics.public_names().items()
        if callable(value)
    }
    assert not [name for name, doc in docs.items() if ">>>" not in (doc or "")]


PAGES = [
    page
    for page in sorted(DOCS.rglob("*.md"))
    if not {"_build", "gallery", "api"} & set(page.relative_to(DOCS).parts)
]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(DOCS)))
def test_the_code_of_a_page_runs_as_it_stands(page, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    flags = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS
    assert not doctest.testfile(str(page), module_relative=False, optionflags=flags).failed


def test_the_names_on_the_pages_are_public():
    known = {*topics.public_names(), *topics.FACES}
    for page in PAGES:
        for name in re.findall(r"\{obj\}`(?:[^`<]*<|~)([\w.]+)>?`", page.read_text()):
            assert name in known, f"{page.name} speaks of {name}"


def test_every_name_of_the_package_and_of_learning_is_in_prose():
    """As code, with a dot or a quote before it: many names are words too."""
    rooms_of_parts = {f"dln_geometry.{room}" for room in ("completion", "tables", "ode")}
    shown = {face for face in topics.FACES if face.startswith("dln_geometry")} - rooms_of_parts
    read = "\n".join(page.read_text() for page in PAGES if page.name != "changelog.md")
    words = set(re.findall(r"(?<=[`.~])\w+", read))
    names = [name for name in topics.public_names() if name.rpartition(".")[0] in shown]
    assert len(names) > 150
    assert not [name for name in names if name.rpartition(".")[2] not in words], "docs/which.md"


def test_the_indices_of_letters_with_accents_stand_beside_them():
    """In the formulas of the pages: docutils sets the i of ``\\dot s_i`` below the s."""
    pytest.importorskip("sphinx")
    from mathematics import as_mathml

    found = as_mathml(r"\sum_{i=1}^n \dot s_i^2 + \bar A_{N} < 0", block=True)
    bare = re.sub(r" [a-z]+=\"[^\"]*\"|</?mo\b[^>]*>|\s", "", found)
    assert "<munderover>∑<mrow>" in bare
    assert "<msubsup><mover><mi>s</mi>˙</mover><mi>i</mi><mn>2</mn></msubsup>" in bare
    assert re.search("<msub><mover><mi>A</mi>.</mover><mi>N</mi></msub>&lt;", bare)
    assert found.startswith('<math xmlns="http://www.w3.org/1998/Math/MathML" display="block">')


def test_the_gallery_shows_a_figure_where_it_was_saved_and_no_path(tmp_path):
    """Figures are drawn by several cells: taken after each, they would be half empty."""
    pytest.importorskip("sphinx_gallery")
    import gallery_runs

    *_, folder = gallery_runs.options({}, {})
    for suffix in (".png", ".pdf"):
        (Path(folder) / f"waves_of_light{suffix}").write_bytes(b"drawn")
    (tmp_path / "images").mkdir()
    images = tmp_path / "images" / "1.png"
    variables = {"src_file": "waves_of_light.py", "image_path_iterator": iter([str(images)])}
    conf = {"src_dir": str(tmp_path)}
    shown = gallery_runs.saved_figures((), variables, conf)
    assert images.read_bytes() == b"drawn"
    assert "images/1.png" in shown
    assert "waves of light" in shown
    assert not list(Path(folder).iterdir())
    assert not gallery_runs.saved_figures((), variables, conf), "once"
    block = " .. rst-class:: sphx-glr-script-out\n\n .. code-block:: none\n\n{}\n\n\nNext.\n"
    for lines, kept in (("", "Next.\n"), ("    loss 1\n", block.format("    loss 1\n"))):
        page = [block.format(f"{lines}    figure: {folder}/waves_of_light.png\n")]
        gallery_runs.without_paths(None, "gallery/waves", page)
        assert page == [kept]
