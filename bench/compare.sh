#!/usr/bin/env bash
# Times a training step here and in a peer (diffusers + PEFT), alternately, and prints both lines and the ratios.
#
#     PEER_PYTHON=python3 PEER_BENCH=bench_step.py bench/compare.sh [--rounds N] [--full-finetune] [options of `loralei bench step`]
#
# PEER_PYTHON  a Python with torch, diffusers and peft;  PEER_BENCH  the peer's script, which prints one JSON line
# PEER_FLAGS   more flags for the peer alone, such as "--channels-last --compile"
# LORALEI      the program [target/release/loralei]
#
# Alternately, because a machine's speed drifts: what one of the two met, the other meets as well. --full-finetune adds the
# peer training every weight to each round. Without PEER_BENCH only our lines are printed. Nothing but JSON lines goes to
# stdout; the ratios are the last of them.
set -euo pipefail

loralei=${LORALEI:-$(dirname "$0")/../target/release/loralei}
rounds=2 full_finetune=
ours=() peer=()
while (($#)); do
    case $1 in
        --rounds) rounds=$2; shift 2 ;;
        --full-finetune) full_finetune=1; shift ;;
        --checkpointing)
            ours+=("$1" "$2")
            [[ $2 == none ]] || peer+=(--checkpointing)
            shift 2 ;;
        --targets)
            ours+=("$1" "$2")
            case $2 in full) peer+=(--targets kohya) ;; *) peer+=(--targets "$2") ;; esac
            shift 2 ;;
        --compute)
            ours+=("$1" "$2")
            [[ $2 == f32 ]] || peer+=(--dtype "$2")
            shift 2 ;;
        --ops | --weights) ours+=("$1" "$2"); shift 2 ;;
        --tf32) ours+=("$1"); shift ;;
        --kind | --latent | --batch | --rank | --dtype | --device | --steps | --warmup) ours+=("$1" "$2"); peer+=("$1" "$2"); shift 2 ;;
        *) sed -n '2,13s/^# \{0,1\}//p' "$0" >&2; exit 2 ;;
    esac
done
# The two have other defaults.
[[ " ${ours[*]} " == *" --latent "* ]] || { ours+=(--latent 64); peer+=(--latent 64); }

lines=$(mktemp)
trap 'rm -f "$lines"' EXIT
read -ra peer_flags <<<"${PEER_FLAGS:-}"
run_peer() {
    "${PEER_PYTHON:-python3}" "$PEER_BENCH" "${peer[@]}" "${peer_flags[@]}" "$@" | tee -a "$lines"
}
for ((round = 0; round < rounds; round++)); do
    "$loralei" bench step "${ours[@]}" | tee -a "$lines"
    [[ -n ${PEER_BENCH:-} ]] || continue
    run_peer
    [[ -z $full_finetune ]] || run_peer --full-finetune
done
[[ -z ${PEER_BENCH:-} ]] || "${PEER_PYTHON:-python3}" - "$lines" <<'PYTHON'
import json, statistics, sys
lines = [json.loads(line) for line in open(sys.argv[1])]
ours = [line for line in lines if "loralei" in line]
peer, full = ([line for line in lines if "torch" in line and bool(line.get("full_finetune")) == full] for full in (False, True))
def step(rows): return statistics.median(row["step_s_median"] for row in rows)
def peak(rows): return max(row["peak_gb"] for row in rows)
flop = ours[0]["gflop_per_step"]
result = {"ratio_step_s": round(step(ours) / step(peer), 3), "ratio_peak_gb": round(peak(ours) / peak(peer), 3),
          "ours_step_s": round(step(ours), 4), "peer_step_s": round(step(peer), 4),
          "ours_gflop_per_s": round(flop / step(ours), 1), "peer_gflop_per_s": round(flop / step(peer), 1),
          "matmul_peak_gflop_per_s": max(row["matmul_peak_gflop_per_s"] for row in ours)}
if full:
    result |= {"ratio_step_s_full_finetune": round(step(ours) / step(full), 3), "full_finetune_step_s": round(step(full), 4),
               "ratio_peak_gb_full_finetune": round(peak(ours) / peak(full), 3), "full_finetune_peak_gb": peak(full)}
print(json.dumps(result))
PYTHON
