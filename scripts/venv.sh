# Sourced by the other scripts: makes .venv beside this folder, installs requirements into it if they changed since the
# last time, and sets $PYTHON. Arguments: requirements files.
set -euo pipefail
ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
PYTHON="$ROOT/.venv/bin/python"

fail() {
    echo "error: $*" >&2
    exit 1
}

find_python() {
    local name
    for name in python3.12 python3.11 python3.10 python3 python; do
        if "$name" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))' >/dev/null 2>&1; then
            echo "$name"
            return
        fi
    done
    return 1
}

make_venv() {
    local python stamp="$ROOT/.venv/installed.txt"
    if ! "$PYTHON" -c 'import sys, pip; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))' >/dev/null 2>&1; then
        python=$(find_python) || fail "Python 3.10, 3.11 or 3.12 is needed and was not found (basicsr does not build on 3.13)."
        echo "making .venv with $("$python" --version)"
        rm -rf "$ROOT/.venv"
        "$python" -m venv "$ROOT/.venv" || fail "could not make $ROOT/.venv; on Debian and Ubuntu: apt-get install python3-venv."
    fi
    if ! cat "$@" | cmp -s - "$stamp"; then
        echo "installing requirements into .venv (several GB; minutes)"
        local options=()
        for file in "$@"; do options+=(-r "$file"); done
        "$PYTHON" -m pip install --disable-pip-version-check --quiet "${options[@]}" || fail "installing the requirements failed (see above)."
        cat "$@" >"$stamp"
    fi
}

make_venv "$@"
