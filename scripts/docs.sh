#!/usr/bin/env bash
# Installs the requirements into .venv; then executes the notebooks with small budgets, and builds the site in build/site.
# Warnings are errors.
#
#   scripts/docs.sh              both
#   scripts/docs.sh site         the site alone
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. scripts/setup.sh
case "${1:-all}" in
  all | site) ;;
  *)
    echo "error: $1 is not one of all, site" >&2
    exit 1
    ;;
esac
install docs,notebooks
if [ "${1:-all}" = all ]; then
  "$VENV/bin/python" scripts/run_notebooks.py --quick
fi
"$VENV/bin/python" -m sphinx -c docs -b html --fail-on-warning --keep-going --quiet . build/site
echo "site: build/site/index.html"
