#!/usr/bin/env bash
# Run the tests: bash scripts/test.sh [pytest arguments]
#   (nothing)   the unit tests        -m run    a few real training steps
#   -m data     with SR_DISTILL_DATA  -m ""     everything
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
source "$here/venv.sh" requirements.txt requirements-export.txt tests/requirements.txt
cd "$ROOT"
exec "$PYTHON" -m pytest "$@"
