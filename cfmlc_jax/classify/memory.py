"""Out-of-memory errors that name the fields of the configuration to change."""

import contextlib
from collections.abc import Callable

from cfmlc_jax.engine.memory import explained
from cfmlc_jax.engine.plan import Memory


def needed_for(
    activity: str, config, section: str, need: Callable[[], Memory] | None = None
) -> contextlib.AbstractContextManager[None]:
    """`engine.memory.explained` for a configuration.

    Args:
        activity: what runs inside, such as "training".
        config: its sizes are named in the error.
        section: "train" or "evaluate", whose batch size counts.
        need: as in `explained`.
    """
    sizes = {
        f"{section}.batch_size": config[section].batch_size,
        "views.image_size": config.views.image_size,
        "patches.grids": tuple(config.patches.grids),
    }
    named = ", ".join(f"{name} (now {value})" for name, value in sizes.items())
    parts = config.train.micro_batches if section == "train" else 1
    more = f"raise train.micro_batches (now {parts}), " if section == "train" else ""
    return explained(
        activity,
        f"{more}make one of {named} smaller, set model.dtype to bfloat16, or use fewer data.workers or more devices; "
        "--mode=plan --memory=24G finds what fits into 24 GiB",
        need,
        images=config[section].batch_size // parts,
    )
