#!/usr/bin/env bash
# How time and memory of a training step grow with the side of the latents, the batch and the rank, each varied alone.
#
#     bench/growth.sh [--latents "16 24 32 48 64"] [--batches "1 2 4"] [--ranks "1 4 16 64"] [options of `loralei bench step`]
#
# LORALEI  the program [target/release/loralei]
#
# What is not varied is at latent 32, batch 1, rank 4. An empty list leaves an axis out. The JSON lines go to stderr as
# they come; stdout is a table in Markdown. Exponents are between a row and the one above it: log(ratio of times) /
# log(ratio of the parameter), and the same over the ratio of the arithmetic, which counts no factors.
set -euo pipefail

loralei=${LORALEI:-$(dirname "$0")/../target/release/loralei}
latents="16 24 32 48 64" batches="1 2 4" ranks="1 4 16 64"
more=()
while (($#)); do
    case $1 in
        --latents) latents=$2; shift 2 ;;
        --batches) batches=$2; shift 2 ;;
        --ranks) ranks=$2; shift 2 ;;
        --kind | --targets | --dtype | --weights | --compute | --checkpointing | --device | --ops | --steps | --warmup) more+=("$1" "$2"); shift 2 ;;
        --tf32) more+=("$1"); shift ;;
        *) sed -n '2,11s/^# \{0,1\}//p' "$0" >&2; exit 2 ;;
    esac
done

lines=$(mktemp)
trap 'rm -f "$lines"' EXIT
# measure AXIS LATENT BATCH RANK
measure() {
    "$loralei" bench step --latent "$2" --batch "$3" --rank "$4" "${more[@]}" | tee /dev/stderr | sed "s/^/$1 /" >>"$lines"
}
for latent in $latents; do measure latent "$latent" 1 4; done
for batch in $batches; do measure batch 32 "$batch" 4; done
for rank in $ranks; do measure rank 32 1 "$rank"; done

"${PEER_PYTHON:-python3}" - "$lines" <<'PYTHON'
import json, math, sys
print("| axis | value | s/step | peak GB | GFLOP | GFLOP/s | exponent over value | over GFLOP |\n|---|---|---|---|---|---|---|---|")
last_axis, last = None, None
for line in open(sys.argv[1]):
    axis, row = line.split(" ", 1)
    row = json.loads(row)
    def exponent(key):
        if axis != last_axis or row[key] == last[key]:
            return ""
        return f'{math.log(row["step_s_median"] / last["step_s_median"]) / math.log(row[key] / last[key]):.2f}'
    print(f'| {axis} | {row[axis]} | {row["step_s_median"]:.3f} | {row["peak_gb"]:.2f} | {row["gflop_per_step"]:.0f} | {row["gflop_per_s"]:.0f} '
          f'| {exponent(axis)} | {exponent("gflop_per_step")} |')
    last_axis, last = axis, row
PYTHON
