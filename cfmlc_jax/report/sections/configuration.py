"""The section of the configuration: all fields, first those that differ from the defaults."""

from cfmlc_jax import config as configs
from cfmlc_jax.report import tables
from cfmlc_jax.report.markup import Markup, element
from cfmlc_jax.report.sections.layout import absent, fold, section
from cfmlc_jax.results.read import Run


def configuration(run: Run) -> Markup:
    """The section with two tables: fields that differ from their defaults, and the other fields."""
    if run.config is None:
        return section("configuration", "Configuration", absent("This folder has no config.json."))
    system = configs.system(run.config)
    fields, defaults = configs.flat(dict(run.config)), configs.flat(configs.to_json(configs.default(system)))
    chosen = {name: value for name, value in fields.items() if defaults.get(name, _NO_DEFAULT) != value}
    rest = {name: value for name, value in fields.items() if name not in chosen}
    lede = f"Fields that differ from the defaults of cfmlc_jax/config/, which are {_RECIPES[system]}."
    return section(
        "configuration",
        "Configuration",
        tables.table(
            ["field", "value", "default"],
            [[_code(name), _code(value), _code(defaults.get(name, ""))] for name, value in chosen.items()],
            caption="Fields that differ from the defaults",
        ),
        fold(
            f"{len(rest)} fields at default",
            tables.table(
                ["field", "value"],
                [[_code(n), _code(v)] for n, v in rest.items()],
                caption="Fields at default",
            ),
        ),
        lede=lede,
    )


# What the defaults of each system are.
_RECIPES = {
    configs.CLASSIFIER: "the paper’s recipe for COCO",
    configs.CGN: "the reference’s recipe for double-coloured digits",
    configs.CGN_IMAGENET: "the reference’s recipe for ImageNet",
    configs.REGIONS: "the reference’s recipe for LVIS v1",
}
_NO_DEFAULT = object()


def _code(value):
    if isinstance(value, list):
        value = f"({', '.join(str(entry) for entry in value)})"
    return element("code", "“”" if value == "" else str(value))
