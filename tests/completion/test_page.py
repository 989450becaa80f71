from __future__ import annotations

import doctest
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_page_on_completion_runs_and_the_readme_leads_to_it():
    page = ROOT / "docs" / "completion.md"
    found = doctest.testfile(str(page), module_relative=False)
    assert found.attempted > 15
    assert not found.failed
    assert "docs/completion.md" in (ROOT / "README.md").read_text()
