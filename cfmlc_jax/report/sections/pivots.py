"""The section of pivots: how often pivot patches hit the boxes of their class."""

from cfmlc_jax.metrics.localization import Rates
from cfmlc_jax.report import tables
from cfmlc_jax.report.markup import Markup, element
from cfmlc_jax.report.sections.layout import absent, fold, section, split_block
from cfmlc_jax.results.read import Run, Split

HEADER = ("", "objects", "0 to 100 %", "pivot", "chance", "best", "share in pivot", "by chance", "at best")
MARKS = (("bar", "combined", "pivot"), ("tick", "whole", "a random patch"))


def pivots(run: Run) -> Markup | None:
    """The section with tables of hit rates: in total, by size, by span and by class."""
    if run.evidence is None:
        return None
    if run.evidence.patch_boxes is None:
        return section(
            "pivots", "Where the model looks", absent("This method has no patches, so there are no pivots.")
        )
    if not any(split.multi_label.findings.localization for split in run.splits):
        return section(
            "pivots",
            "Where the model looks",
            absent("The evaluated splits have no boxes to compare pivots with."),
        )
    lede = (
        "The pivot of a class is the patch with the highest attention. It is a hit if no patch contains a larger part of one of the "
        "class’s boxes. The share is the fraction of the box that the pivot contains. Chance is a random patch; best is the maximum over all patches."
    )
    return section(
        "pivots", "Where the model looks", *(_split(run, split) for split in run.splits), lede=lede
    )


def _split(run: Run, split: Split):
    localization = split.multi_label.findings.localization
    if localization is None:
        return split_block(run, split.name, absent("This split has no boxes to compare pivots with."))
    unit = "fractions of the image" if localization.relative else "pixels"
    rows = [_row("all", localization.all)]
    rows += [_row(f"{name} objects", rates) for name, rates in localization.by_size.items() if rates.pairs]
    rows += [_row(_SPANS[name], rates) for name, rates in localization.by_span.items() if rates.pairs]
    by_class = sorted(localization.by_class.items(), key=lambda entry: -entry[1].hit if entry[1].pairs else 1)
    per_class = [_row(name, rates) for name, rates in by_class if rates.pairs]
    left_out = len(by_class) - len(per_class)
    note = (
        f"Sizes are by the area of the box, in {unit}, with COCO’s limits (32² and 96² of 640 × 480 pixels)."
    )
    note += f" {left_out} classes without a box are left out." if left_out else ""
    return split_block(
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


def _row(name, rates: Rates):
    marks = [tables.bar(rates.hit, "combined"), tables.tick(rates.chance_hit, "whole")]
    shown = tables.track(marks, text=f"{name}: {tables.decimal(rates.hit)} %")
    hits = [float(rates.hit), float(rates.chance_hit), float(rates.best_hit)]
    shares = [float(rates.share), float(rates.chance_share), float(rates.best_share)]
    return [name, rates.pairs, shown, *hits, *shares]
