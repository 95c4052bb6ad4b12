"""The commands of `python -m cfmlc_jax.cgn`: each has `add_parser` and `run`."""
