#!/usr/bin/env bash
# Mutation testing: bash scripts/mutation.sh [-m MARKERS] MODULE...   e.g. sr_distill/losses sr_distill/evaluate/metrics.py
#   Changes one thing at a time in the functions of these files or folders and runs the tests that call the function; a change that no
#   test notices survives. Prints counts for each file; the survivors' diffs are in experiments/mutation/. Not run in CI: it takes long.
#   Tests: the unit tests; -m "not data" adds the training runs, for sr_distill/train; -k EXPRESSION chooses among them by name. Tests that
#   read source text are left out. --last-digits 37 takes a fifth of the changes.
#   mutmut changes what stands in functions and methods, but not under a decorator (@property, @torch.no_grad()), nor in class bodies
#   and module constants: options, registries and tables need tests that were seen to fail.
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
source "$here/venv.sh" requirements.txt tests/requirements.txt scripts/requirements-mutation.txt
cd "$ROOT"
exec env OMP_NUM_THREADS=1 "$PYTHON" scripts/mutation.py "$@"
