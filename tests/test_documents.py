"""The documents: links lead somewhere, the tour fits an hour, README two minutes, and the citation this version."""

import re
from pathlib import Path

import pytest

import cfmlc_jax

ROOT = Path(__file__).parents[1]
DOCUMENTS = [
    ROOT / "README.md",
    ROOT / "CHANGELOG.md",
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "docs").rglob("*.md")),
]
IDS = [str(path.relative_to(ROOT)) for path in DOCUMENTS]
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
TOUR = re.compile(r"^\| \d+ \| \[`([^`]+)`\]\(\.\./\1\) \| (\d+) \|", re.M)


def lines_of(path):
    return len(path.read_text(encoding="utf-8").splitlines())


def without_code(text):
    return re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S)


def anchors(path):
    """Of a document's headings, as GitHub makes them."""
    titles = re.findall(r"^#+ (.*)$", without_code(path.read_text(encoding="utf-8")), re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("path", DOCUMENTS, ids=IDS)
def test_links_lead_somewhere(path):
    dead = []
    for link in LINK.findall(without_code(path.read_text(encoding="utf-8"))):
        if re.match(r"[a-z]+:", link):
            continue
        name, _, anchor = link.partition("#")
        place = (path.parent / name).resolve() if name else path
        if not (place.exists() and place.is_relative_to(ROOT)) or (anchor and anchor not in anchors(place)):
            dead.append(link)
    assert dead == []


def test_readme_is_short_and_names_every_document():
    readme = ROOT / "README.md"
    assert lines_of(readme) <= 180
    named = LINK.findall(without_code(readme.read_text(encoding="utf-8")))
    assert {f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")} <= set(named)


def test_the_site_has_every_document():
    lines = (ROOT / "docs" / "conf.py").read_text(encoding="utf-8").splitlines()
    assert {f"docs/{path.stem}" for path in (ROOT / "docs").glob("*.md")} <= set(lines)


def test_the_tests_that_security_names_exist():
    rows = re.findall(r"^\|.*\| (.*) \|$", (ROOT / "docs" / "security.md").read_text(encoding="utf-8"), re.M)
    names = re.findall(r"`([^`]+)`", "\n".join(rows))
    assert "data/test_picture_files.py" in names
    file = ""
    for name in names:
        place, _, test = name.partition("::")
        file = file if place == "…" else place
        assert f"def {test}" in (ROOT / "tests" / file).read_text(encoding="utf-8"), name


def test_pictures_are_small():
    pictures = re.findall(r"!\[[^\]]*\]\(([^)]+)\)", (ROOT / "README.md").read_text(encoding="utf-8"))
    assert pictures
    for picture in pictures:
        assert (ROOT / picture).stat().st_size <= 150_000


def test_the_tour_fits_an_hour():
    text = (ROOT / "docs" / "tour.md").read_text(encoding="utf-8")
    way, _, _ = text.partition("## Then")
    stops = TOUR.findall(way)
    assert len(stops) == len(re.findall(r"^\| \d", way, re.M)) > 0, "a row of another form"
    lines = {name: lines_of(ROOT / name) for name, _ in stops}
    assert len(lines) == len(stops) <= 14
    assert sum(lines.values()) <= 2200
    stale = {
        name: lines[name] for name, listed in stops if abs(int(listed) - lines[name]) > 0.1 * lines[name]
    }
    assert stale == {}, "the numbers of lines in docs/tour.md are of another time"


def test_the_citation_is_of_this_version():
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"\nversion: {cfmlc_jax.__version__}\n" in citation
    assert "arXiv:2404.06287" in citation
