"""The page of the report, and its file."""

from collections.abc import Sequence
from importlib import resources
from pathlib import Path

import cfmlc_jax
from cfmlc_jax import config as configs
from cfmlc_jax import files
from cfmlc_jax.errors import InputError, printable
from cfmlc_jax.report import generator, imagenet_generator, multi_label, regions, single_label
from cfmlc_jax.report.markup import Markup, element
from cfmlc_jax.report.sections.layout import absent, section
from cfmlc_jax.report.task import Task
from cfmlc_jax.results import read
from cfmlc_jax.results.read import Run


def write(workdir: Path, alphas: Sequence[float] | None = None) -> Path:
    """Write the report into a workdir, and return its path, report/index.html.

    The report of a generator links those of its classifiers, which are written too.

    Args:
        workdir: of a run, evaluated or not.
        alphas: strengths of effects to show; None: strengths around the configured ones.

    Raises:
        InputError: there is no run, a file is damaged, or the folder cannot be written.
    """
    run = read.run(workdir)
    for classifier in run.stages.classifiers if run.stages is not None else ():
        write(workdir / classifier, alphas)
    text = page(run, alphas)
    path = workdir / "report" / "index.html"
    try:
        path.parent.mkdir(exist_ok=True)
        files.write_text(path, text)
    except OSError as error:
        place = printable(str(path))
        raise InputError(f"{place} cannot be written ({error.strerror}); change its permissions") from error
    return path


def page(run: Run, alphas: Sequence[float] | None = None) -> str:
    """The report of a run as a self-contained HTML document.

    Args:
        run: evaluated or not.
        alphas: as in `write`.
    """
    task = _task(run)
    built = {each: each.build(run, alphas) for each in task.sections}
    if not run.splits and task.evaluated is not None:
        built[task.sections[0]] = _not_evaluated(task.evaluated)
    present = {each: content for each, content in built.items() if content is not None}
    body = element(
        "body",
        element("a", "Skip to content", href="#content", class_="skip"),
        _header(run, task),
        _bar(run, present),
        element("main", *present.values(), id="content"),
        element(
            "footer",
            f"Written by cfmlc_jax {cfmlc_jax.__version__} from the files of this run. It needs no network; a script in it "
            "sorts tables.",
        ),
        sorting(),
    )
    return f"<!DOCTYPE html>\n{element('html', head(run.name, _switching(run)), body, lang='en')}\n"


def _task(run: Run) -> Task:
    if run.stages is not None:
        return generator.TASK
    if run.config is not None and configs.system(run.config) == configs.CGN_IMAGENET:
        return imagenet_generator.TASK
    if run.config is not None and configs.system(run.config) == configs.REGIONS:
        return regions.TASK
    return single_label.TASK if run.single_label else multi_label.TASK


def _not_evaluated(evaluated: str):
    reason = (
        f"The full evaluation has not been written yet, so there are no results, classes, {evaluated} or images. "
        "To resume training, run the same command again. To evaluate the best checkpoint so far, use --mode=evaluate."
    )
    return section("results", "Results", absent(reason))


def sorting() -> Markup:
    """The script that sorts tables."""
    return element("script", Markup(_resource("page.js")))


def _resource(name):
    return resources.files("cfmlc_jax.report").joinpath(name).read_text(encoding="utf-8")


def head(title: str, *rules: Markup) -> Markup:
    """The head of a page: its title, and style.css with further rules."""
    style = _resource("style.css")
    return element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("title", f"{title} – cfmlc_jax"),
        element("link", rel="icon", href="data:,"),
        element("style", Markup(style), *rules),
    )


def _header(run, task: Task):
    return element(
        "header",
        element("p", task.kicker(run), class_="kicker"),
        element("h1", run.name),
        element("p", " · ".join(_facts(run, task)), class_="facts"),
    )


def _facts(run, task: Task):
    config = run.config or {}
    facts = [text for text in [task.trained_as(config)] if text]
    if isinstance(config.get("model"), dict) and "name" in config["model"]:
        facts.append(_model(config))
    if isinstance(config.get("views"), dict):
        facts.append(f"{config['views'].get('image_size')} pixels")
    if isinstance(config.get("data"), dict) and "source" in config["data"]:
        facts.append(f"data {config['data'].get('source')}")
    if run.evidence is not None:
        facts.append(f"{len(run.evidence.class_names)} classes")
        facts.append(f"checkpoint {run.evidence.checkpoint}")
    return facts


def _model(config):
    model, patches = config["model"], config.get("patches")
    name, head = model.get("name"), model.get("head", "linear")
    if config.get("method") != "pat_t" or not isinstance(patches, dict):
        return f"{name} with head {head}" if head not in ("linear", "query2label") else str(name)
    pooling = patches.get("pooling", "pivot")
    pooled = f"{patches.get('branches')} attention" if pooling == "pivot" else f"{pooling} pooling"
    return f"{name} with {pooled}{' over cells' if patches.get('source') == 'map' else ''}"


def _bar(run, present):
    """The bar that stays at the top: links to the sections, and a switch between splits."""
    return element("div", element("div", _navigation(present), _switch(run)), class_="bar")


def _switch(run) -> Markup | None:
    """A switch between the splits and "all"; the first split is preselected. None for fewer than two splits."""
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
    return element("div", *choices, class_="splits", role="radiogroup", aria_label="Split to show")


def _switching(run) -> Markup:
    """CSS rules that hide the other splits. All are visible in print, and in browsers without :has."""
    rules = [
        f"body:has(#split-{i}:checked) .split:not(.split-{i}) {{ display: none; }}"
        for i in range(len(run.splits))
    ]
    return Markup(f"@media screen {{ {' '.join(rules)} }}" if len(rules) > 1 else "")


def _navigation(present):
    links = [element("li", element("a", each.link, href=f"#{each.anchor}")) for each in present]
    return element("nav", element("ul", *links), aria_label="Sections")
