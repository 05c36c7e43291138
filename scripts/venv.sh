# Sourced by the other scripts: makes .venv beside this folder, installs requirements into it if they changed since the
# last time, and sets $ROOT and $PYTHON. Arguments: requirements files, below $ROOT.
set -euo pipefail
ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
PYTHON="$ROOT/.venv/bin/python"

fail() {
    echo "error: $*" >&2
    exit 1
}

is_usable() { # whether this Python is one that basicsr builds on
    "$1" -c 'import sys, venv; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))' >/dev/null 2>&1
}

make_venv() {
    local name
    if [ -d "$ROOT/.venv" ] && is_usable "$PYTHON"; then return; fi
    for name in python3.12 python3.11 python3.10 python3 python; do
        if is_usable "$name"; then
            echo "making .venv with $("$name" --version)"
            rm -rf "$ROOT/.venv"
            "$name" -m venv "$ROOT/.venv" ||
                fail "could not make $ROOT/.venv; on Debian and Ubuntu: apt-get install python3-venv."
            return
        fi
    done
    fail "Python 3.10, 3.11 or 3.12 is needed and was not found (basicsr does not build on 3.13)."
}

install_requirements() { # one file; a copy of it in .venv says that it is done
    local file="$1" done_file="$ROOT/.venv/installed/$1"
    if cmp -s "$ROOT/$file" "$done_file"; then return; fi
    echo "installing $file into .venv (the first time: several GB, minutes)"
    # Before 23.1 pip builds basicsr in an older way, in which torch is fetched by setuptools and fails.
    "$PYTHON" -m pip install --disable-pip-version-check --quiet "pip>=23.1" &&
        "$PYTHON" -m pip install --disable-pip-version-check --quiet -r "$ROOT/$file" ||
        fail "installing $file failed (see above)."
    mkdir -p "$(dirname "$done_file")"
    cp "$ROOT/$file" "$done_file"
}

make_venv
for requirements in "$@"; do install_requirements "$requirements"; done
