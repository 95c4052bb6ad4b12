"""The schedule of a run, of any system, from its configuration."""

from ml_collections import ConfigDict

from cfmlc_jax.engine.run import Schedule


def schedule(
    config: ConfigDict, steps_per_epoch: int, *, patience: int | None = None, validate_every: int = 1
) -> Schedule:
    """The schedule of `seed` and section `train`, which all systems have.

    Args:
        config: validated.
        steps_per_epoch: at least 1.
        patience: as in `Schedule`.
        validate_every: as in `Schedule`.
    """
    return Schedule(
        seed=config.seed,
        epochs=config.train.epochs,
        steps_per_epoch=steps_per_epoch,
        batch_size=config.train.batch_size,
        log_every=config.train.log_every,
        checkpoint_every=config.train.checkpoint_every,
        patience=patience,
        validate_every=validate_every,
    )
