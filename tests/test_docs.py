"""What the documentation names is there: the files and headings of its links, the files of its texts."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LISTED = ("git", "ls-files", "--cached", "--others", "--exclude-standard", "*.md")
PAGES = subprocess.run(LISTED, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()


def prose(page: Path) -> str:
    """The text of a page, without its blocks of code."""
    return re.sub(r"^ *```.*?^ *```$", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)


def anchors(page: Path) -> set[str]:
    """What a link to a heading may name, as GitHub derives it."""
    headings = re.findall(r"^#+ (.*)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    lost = []
    for link in re.findall(r"\]\((?!https?:)([^)\s]+)\)", prose(ROOT / page)):
        path, _, heading = link.partition("#")
        target = (ROOT / page).parent / path if path else ROOT / page
        if not target.exists() or (heading and heading not in anchors(target)):
            lost.append(link)
    assert not lost


@pytest.mark.parametrize(("page", "below"), [("CONTRIBUTING.md", ROOT), ("docs/architecture.md", ROOT / "service")])
def test_files_that_are_named_exist(page: str, below: Path) -> None:
    """A name with a placeholder, such as `NNNN_what.py`, is none."""
    named = re.findall(r"`((?:[a-z\d_.]+/)+[a-z\d_]+\.[a-z]+)`", prose(ROOT / page))
    assert named
    assert not [path for path in named if not (below / path).exists() and not (ROOT / path).exists()]


def test_the_signal_of_a_rotation_finds_what_make_serve_starts() -> None:
    [sought] = re.findall(r"pgrep -f '([^']+)'", (ROOT / "docs/keys.md").read_text(encoding="utf-8"))
    recipe = subprocess.run(["make", "--dry-run", "serve"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert sought in recipe
