"""Out-of-memory errors that name the fields of the configuration to make smaller."""

import contextlib

from cfmlc_jax.engine.memory import explained


def needed_for(activity: str, config, section: str) -> contextlib.AbstractContextManager[None]:
    """`engine.memory.explained` for a configuration.

    Args:
        activity: what runs inside, such as "training".
        config: its sizes are named in the error.
        section: "train" or "evaluate", whose batch size counts.
    """
    sizes = {
        f"{section}.batch_size": config[section].batch_size,
        "views.image_size": config.views.image_size,
        "patches.grids": tuple(config.patches.grids),
    }
    named = ", ".join(f"{name} (now {value})" for name, value in sizes.items())
    return explained(
        activity,
        f"make one of {named} smaller, set model.dtype to bfloat16, or use fewer data.workers or more devices",
    )
