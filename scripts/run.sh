#!/usr/bin/env bash
# Installs the requirements into .venv and runs the main command; the default is the embedded data.
#
#   scripts/run.sh                                   train PAT-T, and the method that leans least on context, on digit
#                                                    scenes; evaluate and compare them
#   scripts/run.sh --config=configs/coco.py …        any flags of python -m cfmlc_jax.main
#   CFMLC_EXTRAS=cuda12 scripts/run.sh               on NVIDIA GPUs (tpu: on TPUs)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. scripts/setup.sh
install ""
if [ $# -eq 0 ]; then
  .venv/bin/python -m cfmlc_jax.main --config=configs/scenes.py
  .venv/bin/python -m cfmlc_jax.main --config=configs/scenes.py:exchanged
  exec .venv/bin/python -m cfmlc_jax.report runs/scenes runs/scenes_exchanged
fi
case " $* " in
  *" --config="* | *" --config "* | *" --mode=evaluate "* | *" --help"*) ;;
  *) set -- --config=configs/scenes.py "$@" ;;
esac
exec .venv/bin/python -m cfmlc_jax.main "$@"
