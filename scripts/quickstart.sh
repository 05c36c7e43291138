#!/usr/bin/env bash
# The main job on embedded data, without network or GPU: distil a student, measure it, upscale a photo.
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
source "$here/venv.sh" requirements.txt
cd "$ROOT"

name="quickstart_$(date +%Y%m%d_%H%M%S)"
run="experiments/$name"
options=options/embedded/l1/mobile_sr_from_edsr_x4.yml
trap 'fail "the quickstart did not finish; see above."' ERR

echo "1/3 distilling a student from the zoo's teacher edsr_x4 ($options)"
"$PYTHON" scripts/train.py -opt "$options" name="$name"

echo
echo "2/3 measuring on three held-out photographs"
"$PYTHON" scripts/evaluate.py --brief --scale 4 --datasets embedded --out "$run/evaluation" \
    --model "student before=$run/initial.safetensors" "student after=$run/student.safetensors" "teacher=edsr_x4"

echo
echo "3/3 upscaling a photograph that was not trained on"
photo=$("$PYTHON" -c 'from sr_distill.data.embedded import held_out_photos; print(held_out_photos()[0])')
"$PYTHON" scripts/inference.py -i "$photo" -o "$run/upscaled" --model "$run/student.safetensors"

echo
echo "Done. Everything lies in $run:"
echo "  student.safetensors   the student; it rebuilds itself from this file alone"
echo "  options.yml           the options of the run; metrics.jsonl and tensorboard/: its losses"
echo "  evaluation/           report.html (crops under a slider), and the table above per image as JSON, CSV and Markdown"
echo "  upscaled/             the upscaled photograph"
