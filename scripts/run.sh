#!/usr/bin/env bash
# Installs the requirements into .venv and runs the main command; the default is the embedded data.
#
#   scripts/run.sh                                   train on digit scenes, evaluate, print a table
#   scripts/run.sh --config=configs/coco.py …        any flags of python -m cfmlc_jax.main
#   CFMLC_EXTRAS=cuda12 scripts/run.sh               on NVIDIA GPUs (tpu: on TPUs)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. scripts/setup.sh
install ""
case " $* " in
  *" --config="* | *" --config "* | *" --mode=evaluate "* | *" --help"*) ;;
  *) set -- --config=configs/scenes.py "$@" ;;
esac
exec .venv/bin/python -m cfmlc_jax.main "$@"
