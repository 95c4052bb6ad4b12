"""The section of the images of each class: those in which it is most probably wrong, or overlooked."""

from cfmlc_jax.report.markup import Markup, element
from cfmlc_jax.report.sections.layout import fold, section, split_block
from cfmlc_jax.results.evidence import ClassImages, Evidence, Gallery
from cfmlc_jax.results.read import Run
from cfmlc_jax.results.thresholds import of_class

LEDE = (
    "Of each class the images without it that are most probable, and the images with it that are least probable. Here "
    "are a classifier’s gravest errors, and errors of the labels."
)


def gallery(run: Run) -> Markup | None:
    """The section with a fold for each class of each split; None without such images."""
    if run.evidence is None or not run.evidence.gallery:
        return None
    evidence = run.evidence
    blocks = []
    for split, content in evidence.gallery.items():
        folds = [
            _class(images, content, evidence, anchor(run, split, images.label)) for images in content.classes
        ]
        blocks.append(split_block(run, split, *folds))
    return section("class-images", "Images of each class", *blocks, lede=LEDE)


def anchor(run: Run, split: str, label: int) -> str:
    """The id of a class's images on a split."""
    return f"class-{[each.name for each in run.splits].index(split)}-{label}"


def links(run: Run, split: str) -> dict[int, str]:
    """The ids of the classes on a split that have images, by class."""
    content = None if run.evidence is None else run.evidence.gallery.get(split)
    return {} if content is None else {each.label: anchor(run, split, each.label) for each in content.classes}


def _class(images: ClassImages, content: Gallery, evidence: Evidence, place: str):
    name, threshold = evidence.class_names[images.label], of_class(evidence.thresholds, images.label)
    words = {
        "without the class": (images.without, "false positive", "true negative"),
        "with the class": (images.with_class, "true positive", "false negative"),
    }
    rows = []
    for title, (entries, above, below) in words.items():
        figures = []
        for entry in entries:
            predicted = entry.probability > threshold
            verdict = above if predicted else below
            picture = content.pictures[entry.picture]
            labels = ", ".join(evidence.class_names[k] for k in picture.labels) or "no class"
            figures.append(
                element(
                    "figure",
                    element(
                        "img",
                        src=f"data:image/jpeg;base64,{picture.jpeg}",
                        width=picture.width,
                        height=picture.height,
                        alt=f"Image {picture.id} with {labels}",
                        loading="lazy",
                    ),
                    element(
                        "figcaption",
                        element("strong", f"{entry.probability:.3f}"),
                        element("em", verdict, class_="right" if verdict.startswith("true") else "wrong"),
                        element("span", labels),
                        element("span", picture.id),
                    ),
                )
            )
        if figures:
            rows += [element("h4", title), element("div", *figures, class_="thumbs")]
    # A link to what is inside a closed fold opens it.
    return fold(name, element("div", *rows, id=place, class_="class-images"))
