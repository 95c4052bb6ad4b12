# Sourced by run.sh and test.sh: installs this repository into .venv, once for every state of its
# requirements.
#
#   install EXTRAS   e.g. install test; the extras in $CFMLC_EXTRAS (cuda12, tpu, tensorboard, …) are added
#
# Needs a Python of at least 3.11 with pip; $PYTHON names it (default: python3).

install() {
  local python="${PYTHON:-python3}" extras="$1${CFMLC_EXTRAS:+${1:+,}$CFMLC_EXTRAS}"
  if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
    echo "error: $python is missing or older than 3.11; name another one: PYTHON=python3.12 $0" >&2
    return 1
  fi
  if [ ! -x .venv/bin/python ]; then
    # Without a pip of its own: some systems ship Python without ensurepip. The outer pip installs into it.
    "$python" -m venv --without-pip .venv
  fi
  local stamp=".venv/installed-${extras:-base}"
  if ! cat pyproject.toml constraints.txt | cmp -s - "$stamp"; then
    echo "installing cfmlc_jax${extras:+[$extras]} into .venv …" >&2
    "$python" -m pip --python .venv/bin/python --disable-pip-version-check install --quiet \
      --constraint constraints.txt --editable ".${extras:+[$extras]}"
    cat pyproject.toml constraints.txt > "$stamp"
  fi
}
