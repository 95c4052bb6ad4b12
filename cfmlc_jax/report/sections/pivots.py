"""Do pivot patches hold their class? In numbers."""

from cfmlc_jax.report import tables
from cfmlc_jax.report.markup import Markup, element
from cfmlc_jax.report.run_files import Run, Split
from cfmlc_jax.report.sections.layout import absent, fold, of_split, section

HEADER = ("", "objects", "0 to 100 %", "pivot", "chance", "best", "share in pivot", "by chance", "at best")
MARKS = (("bar", "combined", "pivot"), ("tick", "whole", "a patch drawn at random"))


def pivots(run: Run) -> Markup | None:
    """Tables of hit rates, in all, by size, by span and by class."""
    if run.evidence is None:
        return None
    if run.evidence.cells is None:
        return section("pivots", "Where it looks", absent("This method has no patches, and so no pivots."))
    if not any(split.average["localization"] for split in run.splits):
        return section(
            "pivots", "Where it looks", absent("The evaluated splits have no boxes to hold pivots against.")
        )
    lede = (
        "A class’s pivot is the patch that it attends to most. It hits where it is a patch that holds the largest part of one of "
        "the class’s boxes in the image; the share is how much of the box it holds. Chance is a patch drawn at random, best the most that any patch reaches."
    )
    return section("pivots", "Where it looks", *(_split(run, split) for split in run.splits), lede=lede)


def _split(run: Run, split: Split):
    found = split.average["localization"]
    if not found:
        return of_split(run, split.name, absent("This split has no boxes to hold pivots against."))
    sizes = found["by_size"]
    unit = "fractions of the picture" if found["relative"] else "pixels"
    rows = [_row("all", found["all"])]
    rows += [_row(f"{name} objects", rates) for name, rates in sizes.items() if rates["pairs"]]
    rows += [_row(_SPANS[name], rates) for name, rates in found["by_span"].items() if rates["pairs"]]
    by_class = sorted(
        found["by_class"].items(), key=lambda entry: -entry[1]["hit"] if entry[1]["pairs"] else 1
    )
    per_class = [_row(name, rates) for name, rates in by_class if rates["pairs"]]
    left_out = len(by_class) - len(per_class)
    note = f"Sizes by area of the box, in {unit}, at COCO’s borders (32² and 96² of 640 × 480 pixels)."
    note += f" {left_out} classes without a box are left out." if left_out else ""
    return of_split(
        run,
        split.name,
        tables.key(MARKS),
        tables.table(HEADER, rows, caption=f"Pivots and boxes on {split.name}, percent"),
        element("p", note, class_="note"),
        fold(
            "By class",
            tables.table(HEADER, per_class, caption=f"Pivots by class on {split.name}, percent", tall=True),
        ),
    )


_SPANS = {"within": "fits one patch", "spanning": "spans patches"}


def _row(name, rates):
    marks = [tables.bar(rates["hit"], "combined"), tables.tick(rates["chance_hit"], "whole")]
    shown = tables.track(marks, text=f"{name}: {tables.decimal(rates['hit'])} %")
    values = [
        float(rates[key]) for key in ("hit", "chance_hit", "best_hit", "share", "chance_share", "best_share")
    ]
    return [name, int(rates["pairs"]), shown, *values]
