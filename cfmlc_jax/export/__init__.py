"""Models for other programs: ONNX files, StableHLO files, and folders for a hub (`python -m cfmlc_jax.export`).

`read` returns the classifier of a StableHLO file; it needs the file and JAX, and none of this package's models.
"""

from cfmlc_jax.export.stablehlo import Program, read

__all__ = ["Program", "read"]
