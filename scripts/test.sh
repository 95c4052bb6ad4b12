#!/usr/bin/env bash
# Installs the requirements into .venv; then checks format, lint and types, and runs the tests.
#
#   scripts/test.sh              all tests but the slow ones
#   scripts/test.sh --all        all tests
#   scripts/test.sh --newest     the tests that depend most on JAX, with the newest versions, on the newest Python
#                                (or $PYTHON), in .venv-newest, without PyTorch. Exit code 69: no such Python
#   scripts/test.sh --wheel      the wheel in an environment of its own, with what it requires and no more, outside this
#                                folder; $PYTHON (default: python3) chooses the Python
#   scripts/test.sh tests/engine any arguments of pytest
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. scripts/setup.sh

newest_python() {
  local candidate
  for candidate in ${PYTHON:-python3.14 python3.13 python3.12 "$HOME"/.pyenv/versions/3.1[2-9]*/bin/python3}; do
    if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 12))' 2>/dev/null; then
      echo "$candidate"
      return
    fi
  done
  echo "no Python 3.12 or later found; choose one: PYTHON=/path/to/python3.13 $0 --newest" >&2
  exit 69
}

extras=test,parity
lint=true
which=(-m "not slow")
case "${1:-}" in
  --all)
    which=()
    shift
    ;;
  --wheel)
    shift
    export CFMLC_WHEEL_PYTHON=${PYTHON:-python3}
    lint=false
    set -- tests/test_wheel.py "$@"
    ;;
  --newest)
    shift
    PYTHON=$(newest_python)
    VENV=.venv-newest
    extras=test
    lint=false
    if [ $# -eq 0 ]; then
      set -- tests/causal tests/classify tests/data/test_pipeline.py tests/engine tests/models tests/optim tests/test_checkpoint.py tests/torch_weights tests/test_main.py
    fi
    ;;
esac
install "$extras"
if $lint; then
  "$VENV/bin/ruff" format --check .
  "$VENV/bin/ruff" check .
  "$VENV/bin/mypy"
fi
exec "$VENV/bin/python" -m pytest --numprocesses=auto --dist=worksteal "${which[@]}" "$@"
