"""The page of a check, in the style of the report, without scripts or network."""

import collections
import os
from collections.abc import Sequence
from importlib import resources

import cfmlc_jax
from cfmlc_jax.check.files import thumbnail
from cfmlc_jax.check.findings import ERRORS, WARNINGS, Findings, Problem
from cfmlc_jax.report import tables
from cfmlc_jax.report.markup import Markup, element
from cfmlc_jax.report.sections.layout import absent, fold, section

# Most problems of one kind, and most of them with pictures, that the page shows; the JSON file has all.
SHOWN, PICTURED = 200, 20
# Kinds whose files are shown.
WITH_PICTURES = ("leak", "disagreement", "duplicate", "look-alike")


def page(findings: Findings) -> str:
    """The findings as a self-contained HTML document."""
    sections = {
        "errors": ("Errors", _problems("errors", "Errors", findings, findings.errors, ERRORS)),
        "warnings": ("Warnings", _problems("warnings", "Warnings", findings, findings.warnings, WARNINGS)),
        "classes": ("Classes", _classes(findings)),
        "images": ("Images", _images(findings)),
    }
    body = element(
        "body",
        element("a", "Skip to content", href="#content", class_="skip"),
        element(
            "header",
            element("p", "Check of your own images", class_="kicker"),
            element("h1", os.path.basename(os.path.abspath(findings.folder))),
            element("p", " · ".join(facts(findings)), class_="facts"),
        ),
        element("div", element("div", _navigation(sections)), class_="bar"),
        element("main", *(content for _, content in sections.values()), id="content"),
        element(
            "footer", f"Written by cfmlc_jax {cfmlc_jax.__version__}. It needs no scripts and no network."
        ),
    )
    style = resources.files("cfmlc_jax.report").joinpath("style.css").read_text(encoding="utf-8")
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("title", "Data check – cfmlc_jax"),
        element("link", rel="icon", href="data:,"),
        element("style", Markup(style)),
    )
    return f"<!DOCTYPE html>\n{element('html', head, body, lang='en')}\n"


def facts(findings: Findings) -> list[str]:
    """The findings in a few words each."""
    images = [f"{_counted(count, 'image')} in {split}" for split, count in findings.images.items()]
    return [
        *images,
        _counted(len(findings.classes), "class", "classes"),
        _counted(len(findings.errors), "error"),
        _counted(len(findings.warnings), "warning"),
    ]


def _counted(number: int, one: str, several: str = "") -> str:
    return f"{number:,} {one if number == 1 else several or f'{one}s'}"


def _navigation(sections):
    links = [element("li", element("a", title, href=f"#{anchor}")) for anchor, (title, _) in sections.items()]
    return element("nav", element("ul", *links), aria_label="Sections")


def _problems(anchor, title, findings, problems: Sequence[Problem], kinds):
    if not problems:
        return section(anchor, title, absent("None."))
    by_kind = collections.defaultdict(list)
    for problem in problems:
        by_kind[problem.kind].append(problem)
    blocks = [
        element(
            "div",
            element("h3", f"{kind}: {len(by_kind[kind]):,}"),
            element("p", meaning, class_="note"),
            _list(findings, kind, by_kind[kind]),
            class_="block",
        )
        for kind, meaning in kinds.items()
        if kind in by_kind
    ]
    return section(anchor, title, *blocks)


def _list(findings: Findings, kind: str, problems: Sequence[Problem]):
    entries = []
    for number, problem in enumerate(problems[:SHOWN]):
        pictured = kind in WITH_PICTURES and number < PICTURED
        pictures = [_picture(findings, file) for file in problem.files] if pictured else []
        entries.append(element("li", problem.text, *([element("br")] if pictures else []), *pictures))
    more = len(problems) - len(entries)
    if more:
        entries.append(element("li", f"and {more:,} more, in check.json"))
    return fold(
        "All" if not more else f"The first {SHOWN}",
        element("ul", *entries, style="padding-left:20px"),
        opened=len(problems) <= 10,
    )


def _picture(findings: Findings, file: str) -> Markup | None:
    data = thumbnail(os.path.join(findings.folder, file))
    return None if data is None else element("img", src=f"data:image/jpeg;base64,{data}", alt=file)


def _classes(findings: Findings):
    splits = list(findings.images)
    words = ["present", "absent", "unknown"]
    if not any(counts["unknown"] for each in findings.classes for counts in each.splits.values()):
        words.remove("unknown")
    rows: list[list[tables.Cell]] = [
        [each.name, *(each.splits[split][word] for split in splits for word in words)]
        for each in sorted(findings.classes, key=lambda each: each.splits["train"]["present"])
    ]
    if not rows:
        return section("classes", "Classes", absent("There is no class."))
    header = ["class", *(f"{split}, {word}" for split in splits for word in words)]
    lede = "Images that have each class, rarest first. A class that a line does not mention counts as the run was told to take it."
    return section(
        "classes", "Classes", tables.table(header, rows, caption="Images by class", tall=True), lede=lede
    )


def _images(findings: Findings):
    if not findings.modes:
        return section("images", "Images", absent("No file can be decoded."))
    modes = tables.table(
        ["mode of the pixels", "files"],
        [[mode, count] for mode, count in findings.modes.items()],
        caption="Modes",
    )
    sides = tables.table(
        ["side, pixels", "least", "median", "greatest"],
        [[name, *values] for name, values in findings.sides.items()],
        caption="Sides",
    )
    lede = "All modes are converted to RGB: grey, palette and CMYK too; transparent pixels are blended with white."
    return section("images", "Images", sides, modes, lede=lede)
