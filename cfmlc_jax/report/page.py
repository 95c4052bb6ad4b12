"""The whole page, and the file that holds it."""

from collections.abc import Sequence
from importlib import resources
from pathlib import Path

import cfmlc_jax
from cfmlc_jax import files
from cfmlc_jax.errors import InputError, printable
from cfmlc_jax.report import run_files
from cfmlc_jax.report.markup import Markup, element
from cfmlc_jax.report.run_files import Run
from cfmlc_jax.report.sections.accuracy import accuracy
from cfmlc_jax.report.sections.classes import classes
from cfmlc_jax.report.sections.company import company
from cfmlc_jax.report.sections.configuration import configuration
from cfmlc_jax.report.sections.curves import curves
from cfmlc_jax.report.sections.gallery import gallery
from cfmlc_jax.report.sections.layout import absent, section
from cfmlc_jax.report.sections.overview import overview
from cfmlc_jax.report.sections.pivots import pivots
from cfmlc_jax.report.sections.shot_strength import shot_strength
from cfmlc_jax.report.sections.strength import strength
from cfmlc_jax.report.sections.tail import tail
from cfmlc_jax.report.sections.training import training

METHODS = {
    "pat_t": "PAT-T, trained with patches",
    "pat_i": "PAT-I, predicts with patches",
    "asl": "ASL, whole images only",
}
KICKERS = {
    False: "Counterfactual multi-label classification",
    True: "Counterfactual classification of long tails",
}
NAVIGATION = {
    "results": "Results",
    "classes": "Classes",
    "curves": "Curves",
    "company": "Company",
    "strength": "Effects",
    "pivots": "Pivots",
    "gallery": "Images",
    "training": "Training",
    "configuration": "Configuration",
}


def write(workdir: Path, alphas: Sequence[float] | None = None) -> Path:
    """The path of the report, which is written into the workdir: report/index.html.

    Args:
        workdir: of a run, evaluated or not.
        alphas: strengths of effects to read off; None for those around the configured ones.

    Raises:
        InputError: no run, damaged files, or a folder that cannot be written.
    """
    text = page(run_files.read(workdir), alphas)
    path = workdir / "report" / "index.html"
    try:
        path.parent.mkdir(exist_ok=True)
        files.write_text(path, text)
    except OSError as error:
        place = printable(str(path))
        raise InputError(f"{place} cannot be written ({error.strerror}); change its rights") from error
    return path


def page(run: Run, alphas: Sequence[float] | None = None) -> str:
    """The run as an HTML document that needs nothing but itself.

    Args:
        run: what there is of it.
        alphas: as in `write`.
    """
    sections = _of_one_label(run, alphas) if run.one_label else _of_many_labels(run, alphas)
    sections |= {
        "gallery": gallery(run),
        "training": training(run),
        "configuration": configuration(run),
    }
    there = {name: found for name, found in sections.items() if found is not None}
    body = element(
        "body",
        element("a", "To the content", href="#content", class_="skip"),
        _header(run),
        _bar(run, there),
        element("main", *there.values(), id="content"),
        element(
            "footer",
            f"Written by cfmlc_jax {cfmlc_jax.__version__} from the files of this run; no script, no network.",
        ),
    )
    return f"<!DOCTYPE html>\n{element('html', _head(run), body, lang='en')}\n"


def _of_many_labels(run, alphas) -> dict[str, Markup | None]:
    return {
        "results": overview(run) or _not_evaluated("curves, company, pivots"),
        "classes": classes(run),
        "curves": curves(run),
        "company": company(run),
        "strength": strength(run, alphas),
        "pivots": pivots(run),
    }


def _of_one_label(run, alphas) -> dict[str, Markup | None]:
    return {
        "results": accuracy(run) or _not_evaluated("effects"),
        "classes": tail(run),
        "strength": shot_strength(run, alphas),
    }


def _not_evaluated(others):
    reason = (
        f"The full evaluation has not been written yet: no results, classes, {others} or images. "
        "The same training command goes on; --mode=evaluate evaluates the best checkpoint so far."
    )
    return section("results", "Results", absent(reason))


def _head(run):
    style = resources.files("cfmlc_jax.report").joinpath("style.css").read_text(encoding="utf-8")
    return element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("title", f"{run.name} – cfmlc_jax"),
        element("link", rel="icon", href="data:,"),
        element("style", Markup(style), _switching(run)),
    )


def _header(run):
    return element(
        "header",
        element("p", KICKERS[run.one_label], class_="kicker"),
        element("h1", run.name),
        element("p", " · ".join(_facts(run)), class_="facts"),
    )


def _facts(run):
    config, found = run.config or {}, []
    if run.one_label:
        found.append(f"one label an image, loss {config['loss']['name']}")
    elif "method" in config:
        found.append(METHODS.get(config["method"], str(config["method"])))
    if isinstance(config.get("model"), dict):
        found.append(_model(config["model"]))
    if isinstance(config.get("views"), dict):
        found.append(f"{config['views'].get('image_size')} pixels")
    if isinstance(config.get("data"), dict):
        found.append(f"data {config['data'].get('source')}")
    if run.evidence is not None:
        found.append(f"{len(run.evidence.class_names)} classes")
        found.append(f"checkpoint {run.evidence.checkpoint}")
    return found


def _model(model):
    if model.get("attention", "none") == "none":
        return (
            f"{model.get('name')} with head {model['head']}" if model.get("head") else str(model.get("name"))
        )
    pooling = model.get("pooling", "pivot")
    pooled = f"{model['attention']} attention" if pooling == "pivot" else f"{pooling} pooling"
    return f"{model.get('name')} with {pooled}{' over cells' if model.get('cells') else ''}"


def _bar(run, there):
    """What stays on top: links to the sections, and a switch of splits."""
    return element("div", element("div", _navigation(there), _switch(run)), class_="bar")


def _switch(run) -> Markup | None:
    """A choice of one split or all of them, the first at the start; None for fewer than two splits."""
    if len(run.splits) < 2:
        return None
    names = {f"split-{i}": split.name for i, split in enumerate(run.splits)} | {"split-all": "all"}
    choices = [
        element(
            "label",
            element("input", type="radio", name="split", id=each, checked=i == 0),
            element("span", name),
        )
        for i, (each, name) in enumerate(names.items())
    ]
    return element("div", *choices, class_="splits", role="radiogroup", aria_label="Split that is shown")


def _switching(run) -> Markup:
    """Rules that hide the splits that are not chosen; paper shows all of them, as does a browser without :has."""
    rules = [
        f"body:has(#split-{i}:checked) .split:not(.split-{i}) {{ display: none; }}"
        for i in range(len(run.splits))
    ]
    return Markup(f"@media screen {{ {' '.join(rules)} }}" if len(rules) > 1 else "")


def _navigation(there):
    links = [
        element("li", element("a", words, href=f"#{name}"))
        for name, words in NAVIGATION.items()
        if name in there
    ]
    return element("nav", element("ul", *links), aria_label="Sections")
