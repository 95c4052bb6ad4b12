"""The same as python -m cfmlc_jax.data: where to get a data set, and whether the copy on disk is complete."""

import sys

from cfmlc_jax.data.__main__ import main

if __name__ == "__main__":
    sys.exit(main())
