#!/usr/bin/env bash
# All that only a GPU can show, in order of value, each part also where the one before failed:
#   1 the tests of tests/gpu (with SR_DISTILL_DATA also: published checkpoints give the CPU's numbers)
#   2 the time of a training step
#   3 the zoo's queue, for the rest of the time; it goes on from OUT/zoo.tar of an earlier call where that is named in RESUME
# bash scripts/gpu.sh OUT [MINUTES]     into the folder OUT: 1_tests.txt, 2_steps.txt, 3_zoo.txt and zoo.tar (students, last checkpoints)
# Where 2_steps.txt shows recorded steps, ZOO_OVERRIDES="train.cuda_graph=true train.precision=bf16" is for part 3.
# Environment: PARTS ("1 2 3"); PYTHON (that of .venv, where it is there); DEVICE (cuda; cpu for a rehearsal); RESUME, a zoo.tar; ZOO_OVERRIDES, options of every run (key.path=value ...);
# ZOO_QUEUE, a folder of options files in the place of options/zoo.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1
out="${1:?the folder for results is missing: bash scripts/gpu.sh OUT [MINUTES]}" minutes="${2:-9}"
parts="${PARTS:-1 2 3}" device="${DEVICE:-cuda}" python="${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python3)}" started=$SECONDS failed=0
mkdir -p "$out" || exit 1
out="$(cd "$out" && pwd)"
export PYTHONUNBUFFERED=1 SR_DISTILL_TEST_DEVICE="$device"

part() { # name of the log, command: run it, show the end of what it said
    local log="$out/$1"
    shift
    "$@" >"$log" 2>&1 || { failed=1; echo "FAILED: $*"; }
    tail -n 25 "$log" | cut -c1-300
}

if [[ $parts == *1* ]]; then
    echo "== 1 tests on $device"
    part 1_tests.txt "$python" -m pytest -q -m gpu tests/gpu -p no:cacheprovider
fi
if [[ $parts == *2* ]]; then
    echo "== 2 time of a step on $device"
    part 2_steps.txt "$python" scripts/benchmark.py step --device "$device" --rounds "$([ "$device" = cuda ] && echo 10 || echo 1)"
fi
left=$((minutes * 60 - (SECONDS - started) - 45)) # seconds for the queue, less what packing takes
if [[ $parts == *3* && $left -gt 0 ]]; then
    echo "== 3 the zoo's queue on $device, $left s"
    zoo="$(mktemp -d)"
    [ -z "${RESUME:-}" ] || tar -xf "$RESUME" -C "$zoo" || failed=1
    # shellcheck disable=SC2086  # overrides are words
    part 3_zoo.txt "$python" scripts/train_zoo.py run --queue "${ZOO_QUEUE:-options/zoo}" --minutes "$(awk "BEGIN { print $left / 60 }")" \
        output_dir="$zoo" device="$device" data.device="$device" ${ZOO_OVERRIDES:-}
    (cd "$zoo" && find . -type f \( -name '*.pt' -o -name '*.safetensors' -o -name options.yml -o -name metrics.jsonl \) -print0 |
        tar --null -cf "$out/zoo.tar" -T -) || failed=1
fi
exit "$failed"
