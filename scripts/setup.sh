# Sourced by run.sh and test.sh: installs this repository into $VENV (default: .venv), again only if its
# requirements have changed.
#
#   install EXTRAS   e.g. install test; the extras in $CFMLC_EXTRAS (cuda13, tpu, tensorboard, …) are added
#
# Needs Python 3.11 or later with pip; $PYTHON chooses it (default: python3). The versions are those with which the
# tests passed: constraints.txt for Python 3.11, constraints-newest.txt for 3.12 and later.

VENV=.venv

install() {
  local python="${PYTHON:-python3}" extras="$1${CFMLC_EXTRAS:+${1:+,}$CFMLC_EXTRAS}" constraints
  if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
    echo "error: $python is missing or older than 3.11; choose another: PYTHON=python3.12 $0" >&2
    return 1
  fi
  if [ ! -x "$VENV/bin/python" ]; then
    # Without pip, because some systems ship Python without ensurepip. The outer pip installs into it.
    "$python" -m venv --without-pip "$VENV"
  fi
  constraints=$("$VENV/bin/python" -c 'import sys; print("constraints.txt" if sys.version_info < (3, 12) else "constraints-newest.txt")')
  local stamp="$VENV/installed-${extras:-base}"
  if ! cat pyproject.toml "$constraints" | cmp -s - "$stamp"; then
    echo "installing cfmlc_jax${extras:+[$extras]} into $VENV …" >&2
    "$python" -m pip --python "$VENV/bin/python" --disable-pip-version-check install --quiet \
      --constraint "$constraints" --editable ".${extras:+[$extras]}"
    cat pyproject.toml "$constraints" > "$stamp"
  fi
}
