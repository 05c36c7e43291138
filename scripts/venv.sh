# Sourced by the other scripts: makes .venv beside this folder, installs requirements and this package into it if they changed since
# the last time, and sets $ROOT and $PYTHON. Arguments: requirements files, below $ROOT.
set -euo pipefail
ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
PYTHON="$ROOT/.venv/bin/python"

fail() {
    echo "error: $*" >&2
    exit 1
}

is_usable() {
    "$1" -c 'import sys, venv; sys.exit(sys.version_info < (3, 10))' >/dev/null 2>&1
}

make_venv() {
    local name
    if [ -d "$ROOT/.venv" ] && is_usable "$PYTHON"; then return; fi
    for name in python3.12 python3.11 python3.13 python3.14 python3.10 python3 python; do
        if is_usable "$name"; then
            echo "making .venv with $("$name" --version); what is installed into it takes several GB, and minutes"
            rm -rf "$ROOT/.venv"
            "$name" -m venv "$ROOT/.venv" ||
                fail "could not make $ROOT/.venv; on Debian and Ubuntu: apt-get install python3-venv."
            return
        fi
    done
    fail "Python 3.10 or newer is needed and was not found."
}

pip_install() {
    "$PYTHON" -m pip install --disable-pip-version-check --quiet "$@"
}

install_once() { # FILE, arguments of pip: once, and again when FILE changed; a copy of it in .venv says that it is done
    local file="$1" done_file="$ROOT/.venv/installed/$1"
    shift
    if cmp -s "$ROOT/$file" "$done_file"; then return; fi
    echo "installing $file into .venv"
    # What builds this package and basicsr, as in pyproject.toml.
    pip_install "pip>=23.1" "setuptools>=77" && pip_install "$@" || fail "installing $file failed (see above)."
    mkdir -p "$(dirname "$done_file")"
    cp "$ROOT/$file" "$done_file"
}

make_venv
# basicsr first and alone: left to pip it would not be built on Python 3.13 and newer, and on others with a PyTorch fetched for that.
PYTHONPATH="$ROOT/scripts/build_basicsr" install_once scripts/build_basicsr/requirements.txt \
    --no-deps --no-build-isolation -r "$ROOT/scripts/build_basicsr/requirements.txt"
wanted=()
for requirements in "$@"; do # each with those before it, so that pip finds versions that suit all
    wanted+=(-r "$ROOT/$requirements")
    install_once "$requirements" "${wanted[@]}"
done
install_once pyproject.toml --no-deps --no-build-isolation -e "$ROOT" # without the network; for the command .venv/bin/sr-distill
