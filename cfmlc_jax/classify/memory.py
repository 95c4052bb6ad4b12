"""What a classifier's memory depends on, for the error that says it is too little."""

import contextlib

from cfmlc_jax.engine.memory import enough


def needed_for(what: str, config, section: str) -> contextlib.AbstractContextManager[None]:
    """`engine.memory.enough`, with the fields of a configuration that decide how much "train" or "evaluate" takes."""
    sizes = {
        f"{section}.batch_size": config[section].batch_size,
        "views.image_size": config.views.image_size,
        "patches.grids": tuple(config.patches.grids),
    }
    named = ", ".join(f"{name} (now {value})" for name, value in sizes.items())
    return enough(
        what,
        f"make one of {named} smaller, set model.dtype to bfloat16, or take fewer data.workers or more devices",
    )
