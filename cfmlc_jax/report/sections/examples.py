"""The section of example images: those predicted best and worst, with the weights of patches."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from cfmlc_jax.report import tables
from cfmlc_jax.report.markup import Markup, element
from cfmlc_jax.report.sections.layout import section, split_block
from cfmlc_jax.results import pivots
from cfmlc_jax.results.evidence import Example, ExampleClass
from cfmlc_jax.results.read import Run

SIDE = 180  # longer side of an image in SVG units, so that text of size 11 is legible on phones
HEADINGS = {"best": "Lowest loss", "worst": "Highest loss"}


@dataclass(frozen=True)
class ExamplesView:
    """How a task shows examples.

    lede: the introduction: which images and classes are shown.
    predicted: a function of a class and its example -> whether the class is predicted.
    """

    lede: str
    predicted: Callable[[ExampleClass, Example], bool]


def examples(run: Run, view: ExamplesView) -> Markup | None:
    """The section with example images, each with a panel for three classes; patches with low weight are dimmed."""
    if run.evidence is None:
        return None
    blocks = []
    for number, (split, kinds) in enumerate(run.evidence.examples.items()):
        shown = [
            element(
                "div",
                element("h4", HEADINGS[kind]),
                *(
                    _example(
                        example,
                        f"photo-{number}-{kind}-{i}",
                        run.evidence.class_names,
                        run.evidence.patch_boxes,
                        view,
                    )
                    for i, example in enumerate(kind_examples)
                ),
            )
            for kind, kind_examples in kinds.items()
            if kind_examples
        ]
        blocks.append(split_block(run, split, *shown))
    lede = view.lede
    if run.evidence.patch_boxes is not None:
        lede += (
            f" Patches with a low weight for the class are dimmed. The pivot has a frame if its weight is at least {pivots.PIVOT:g} times the "
            "uniform weight; below that, no patch stands out. Dashed boxes are objects of the class. The effect is the class’s logit minus the logit without the pixels that it owns, or else without its pivot patch."
        )
    return section("examples", "Best and worst images", *blocks, lede=lede)


def _example(example: Example, anchor: str, names: Sequence[str], patch_boxes, view: ExamplesView):
    """An image and its classes."""
    labels = ", ".join(names[k] for k in example.labels)
    scale = SIDE / max(example.width, example.height)
    width, height = example.width * scale, example.height * scale
    image = element(
        "image", id=anchor, href=f"data:image/jpeg;base64,{example.jpeg}", width=width, height=height,
        preserveAspectRatio="none",
    )  # fmt: skip
    photo = element(
        "figure",
        _canvas([image], width, height, f"Image {example.id} with {labels}"),
        element("figcaption", element("strong", labels), element("span", example.id), element("span", f"loss {example.loss:.3f}")),
    )  # fmt: skip
    if patch_boxes is None:
        # Without patches, the panels of all classes would show the same image.
        listed = [
            element("li", element("strong", names[s.label]), " ", *_facts(s, _verdict(s, example, view)))
            for s in example.classes
        ]
        return element("div", photo, element("ul", *listed, class_="classes"), class_="example plain")
    classes = [
        _class(shown, _verdict(shown, example, view), anchor, (width, height), names, patch_boxes)
        for shown in example.classes
    ]
    return element("div", photo, *classes, class_="example")


def _class(shown: ExampleClass, verdict, anchor, size, names, patch_boxes):
    name, (width, height) = names[shown.label], size
    parts = [] if shown.weights is None else _patches(shown.weights, patch_boxes, anchor, width, height)
    parts += [_box(box, width, height) for box in shown.boxes]
    text = f"{name}: probability {shown.probability:.2f}, {verdict[0]}"
    return element(
        "figure",
        _canvas(parts, width, height, text),
        element("figcaption", element("strong", name), *_facts(shown, verdict)),
    )


def _facts(shown: ExampleClass, verdict):
    words, mark = verdict
    facts = [element("span", f"{shown.probability:.2f} · ", element("em", words, class_=mark))]
    if shown.weights is not None:
        facts.append(element("span", f"{pivots.weight_text(shown.weights)} {max(shown.weights):.2f}"))
    if shown.effect is not None:
        facts.append(element("span", f"effect {tables.signed(shown.effect)}"))
    return facts


def _verdict(shown: ExampleClass, example: Example, view: ExamplesView) -> tuple[str, str]:
    """The name of the decision, such as "true positive", and "right" or "wrong"."""
    predicted = view.predicted(shown, example)
    if shown.present:
        return ("true positive", "right") if predicted else ("false negative", "wrong")
    return ("false positive", "wrong") if predicted else ("true negative", "right")


def _canvas(parts, width, height, text):
    box = f"0 0 {width:.2f} {height:.2f}"
    return element("svg", *parts, viewBox=box, class_="photo", role="img", aria_label=text)


def _patches(weights, patch_boxes, anchor, width, height):
    """The image, dimmed, and over it each patch with a brightness by its weight; the largest weight on top."""
    pivot, heaviest = pivots.pivot_of(weights), max(weights)
    boxes = [
        (x0 * width, y0 * height, (x1 - x0) * width, (y1 - y0) * height) for x0, y0, x1, y1 in patch_boxes
    ]
    parts = [element("use", href=f"#{anchor}"), _shade(0, 0, width, height, 1 - pivots.FADED)]
    for p in sorted(range(len(boxes)), key=lambda p: weights[p]):
        x, y, w, h = boxes[p]
        cut = element(
            "svg", element("use", href=f"#{anchor}"), _shade(x, y, w, h, (1 - pivots.FADED) * (1 - weights[p] / heaviest)),
            x=x, y=y, width=w, height=h, viewBox=f"{x:.2f} {y:.2f} {w:.2f} {h:.2f}",
        )  # fmt: skip
        parts += [cut, element("rect", x=x, y=y, width=w, height=h, class_="patch")]
    if pivot is not None:
        x, y, w, h = boxes[pivot]
        inner = {"x": x + 1.5, "y": y + 1.5, "width": max(w - 3, 1.0), "height": max(h - 3, 1.0)}
        parts += [element("rect", class_="pivot-halo", **inner), element("rect", class_="pivot", **inner)]
    parts += [_tag(boxes[p], weights[p]) for p in range(len(boxes)) if boxes[p][2] > 40 and boxes[p][3] > 22]
    return parts


def _shade(x, y, w, h, strength):
    return element("rect", x=x, y=y, width=w, height=h, fill_opacity=f"{strength:.3f}", class_="shade")


def _tag(box, weight):
    return element("text", f"{weight:.0%}", x=box[0] + 6, y=box[1] + 15, class_="weight")


def _box(box, width, height):
    x0, y0, x1, y1 = box
    place = {"x": x0 * width, "y": y0 * height, "width": (x1 - x0) * width, "height": (y1 - y0) * height}
    return element(
        "g", element("rect", class_="object-halo", **place), element("rect", class_="object", **place)
    )
