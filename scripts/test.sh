#!/usr/bin/env bash
# Installs what is needed into .venv; then format, lint, types and tests.
#
#   scripts/test.sh              all but the slow tests
#   scripts/test.sh --all        the slow ones too
#   scripts/test.sh tests/loop   any arguments of pytest
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. scripts/setup.sh
install test
which=(-m "not slow")
if [ "${1:-}" = --all ]; then
  which=()
  shift
fi
.venv/bin/ruff format --check .
.venv/bin/ruff check .
.venv/bin/mypy
exec .venv/bin/python -m pytest --numprocesses=auto --dist=worksteal "${which[@]}" "$@"
