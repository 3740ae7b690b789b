#!/usr/bin/env bash
# Shows in ten minutes whether Loralei is right and fast on a machine with an NVIDIA card. Needs neither Rust nor a network.
#
#     tools/gpu/run.sh [--cpu] [--device cuda] [--binary FILE] [--peers DIR] [--wheels DIR] [--case DIR]... [--out DIR]
#
# --cpu         only what the processor can do; chosen without being asked where there is no card
# --binary      the program [target/release/loralei]
# --peers       a folder with bench_step.py, for times beside diffusers + PEFT   (or the variable PEERS)
# --wheels      a folder of Python wheels that the peers need besides PyTorch     (or the variable WHEELS)
# --case        a reference case: base/, adapter, batch, expected .safetensors; may be repeated [tests/golden/sd1 and sd2]
# --out         where logs and results stay [a new temporary folder]
# PYTHON        a Python with numpy and safetensors, and PyTorch for the peers [python3]
#
# Every part has a time limit, all together 10 minutes. A part that cannot run is left out and named. Exit status: 0 if
# no part failed.
set -uo pipefail

top=$(cd "$(dirname "$0")/../.." && pwd)
binary=$top/target/release/loralei peers=${PEERS:-} wheels=${WHEELS:-} out='' device=cuda cases=() python=${PYTHON:-python3}
while (($#)); do
    case $1 in
        --cpu) device=cpu; shift ;;
        --device) device=$2; shift 2 ;;
        --binary) binary=$2; shift 2 ;;
        --peers) peers=$2; shift 2 ;;
        --wheels) wheels=$2; shift 2 ;;
        --case) cases+=("$2"); shift 2 ;;
        --out) out=$2; shift 2 ;;
        *) sed -n '2,16s/^# \{0,1\}//p' "$0" >&2; exit 2 ;;
    esac
done
((${#cases[@]})) || cases=("$top/tests/golden/sd1" "$top/tests/golden/sd2")
out=${out:-$(mktemp -d)}
mkdir -p "$out"
table=$out/table.tsv
: >"$table"
started=$SECONDS
failed=0

row() { # PART RESULT FIGURES
    printf '%s\t%s\t%s\n' "$1" "$2" "$3" >>"$table"
    # What is wrong with the peers is not wrong with us.
    [[ $2 == ok || $2 == 'left out' || $1 == peer* ]] || failed=1
}

# Runs a part under a limit of seconds, or what is left of ten minutes; its output is in $out/NAME.log, its stdout in NAME.out.
part() { # NAME LIMIT COMMAND...
    local name=$1 limit=$2 left=$((590 - SECONDS + started))
    shift 2
    ((limit < left)) || limit=$left
    ((limit > 0)) || { row "$name" 'out of time' 'not begun'; return 1; }
    echo "== $name: $*" >&2
    local begun=$SECONDS code=0
    timeout -k 5 "$limit" "$@" >"$out/$name.out" 2>"$out/$name.log" || code=$?
    took=$((SECONDS - begun))
    case $code in
        0) return 0 ;;
        124 | 137) row "$name" 'out of time' "stopped after $took s" ;;
        *) row "$name" FAILED "exit status $code: $(tail -n 2 "$out/$name.log" | tr '\n\t' '  ')" ;;
    esac
    return 1
}

number() { sed -n "s/.*\"$2\": \{0,1\}\([0-9.eE+-]*\).*/\1/p" "$1" | tail -n 1; } # FILE FIELD
has_module() { "$python" -c "import $1" 2>/dev/null; }

say_machine() {
    echo "== machine: $(uname -srm), $(nproc) cores" >&2
    if nvidia-smi -L >/dev/null 2>&1; then
        row card ok "$(nvidia-smi --query-gpu=name,driver_version,memory.total,compute_cap --format=csv,noheader | tr '\n' ' ')"
    else
        row card 'left out' 'no NVIDIA card here: the processor alone is tried'
        device=cpu
    fi
    local cuda torch
    cuda=$(nvcc --version 2>/dev/null | sed -n 's/.*release \([0-9.]*\).*/\1/p')
    torch=$("$python" -c 'import torch; print(torch.__version__)' 2>/dev/null)
    row versions ok "CUDA toolkit ${cuda:-none}, PyTorch ${torch:-none}, $("$python" --version 2>&1)"
}

check_doctor() {
    part doctor 30 "$binary" doctor || return
    cat "$out/doctor.out"
    if [[ $device != cpu ]] && ! grep -q '^devices.*cuda' "$out/doctor.out"; then
        row doctor FAILED "$(grep '^cards' "$out/doctor.out")"
        device=cpu
        return
    fi
    row doctor ok "$(sed -n 's/^devices *//p' "$out/doctor.out")"
}

check_ops() {
    local dtype seed
    for dtype in f32 bf16 f16; do
        seed=$RANDOM
        if part "ops-$dtype" 60 "$binary" verify ops --device "$device" --dtype "$dtype" --seed "$seed"; then
            row "ops-$dtype" ok "seed $seed, $(($(wc -l <"$out/ops-$dtype.out") - 1)) operations, worst $(awk 'NR > 1 && $(NF - 2) + 0 > worst { worst = $(NF - 2) } END { print worst }' "$out/ops-$dtype.out")"
        fi
        cat "$out/ops-$dtype.out" 2>/dev/null
    done
}

check_step() {
    local case name
    has_module 'numpy, safetensors' || { row step 'left out' "$python has no numpy or safetensors"; return; }
    for case in "${cases[@]}"; do
        name=step-$(basename "$case")
        [[ -f $case/expected.safetensors ]] || { row "$name" 'left out' 'no reference case there'; continue; }
        part "$name" 90 "$binary" verify step --base "$case/base" --adapter "$case/adapter.safetensors" \
            --batch "$case/batch.safetensors" --output "$out/$name.safetensors" --device "$device" || continue
        part "$name-compare" 60 "$python" "$top/tools/golden_compare.py" "$out/$name.safetensors" "$case/expected.safetensors" || continue
        row "$name" ok "$took s; relative: $(awk 'NR > 1 && NF > 4 { printf "%s %s  ", $1, $4 }' "$out/$name-compare.log")"
    done
}

check_quickstart() {
    local steps=() what='500 steps'
    [[ $device != cpu ]] || { steps=(--set train.steps=20) what='20 of 500 steps'; }
    cd "$top" || return
    if part quickstart 180 "$binary" train configs/quickstart.toml --device "$device" --output "$out/quickstart" "${steps[@]}"; then
        row quickstart ok "$what, $took s in all; $(grep 'steps in' "$out/quickstart.log" | tail -n 1)"
    fi
}

# A run in three parts against one in one: on the processor the same bytes, on a card the largest difference is said.
check_resume() {
    local third=4 last differs settings
    [[ $device == cpu ]] || third=20
    last=$((3 * third))
    settings=(configs/quickstart.toml --device "$device" --set "train.steps=$last" --set 'samples.prompts=[]')
    cd "$top" || return
    part resume-straight 90 "$binary" train "${settings[@]}" --output "$out/straight" || return
    part resume-first 60 "$binary" train "${settings[@]}" --output "$out/parts" --until "$third" || return
    part resume-second 60 "$binary" train "${settings[@]}" --output "$out/parts" --until "$((2 * third))" --resume || return
    part resume-third 60 "$binary" train "${settings[@]}" --output "$out/parts" --resume || return
    if cmp -s "$out"/{straight,parts}/checkpoints/step-"$(printf %06d "$last")".state; then
        row resume ok "$last steps, and in three parts: the same bytes"
        return
    fi
    differs=$(paste "$out"/{straight,parts}/metrics.jsonl | sed -n 's/.*"loss":\([^,]*\),.*"loss":\([^,]*\),.*/\1 \2/p' |
        awk '{ d = $1 - $2; if (d < 0) d = -d; if (d > worst) worst = d } END { print worst + 0 }')
    [[ $device == cpu ]] && row resume FAILED "losses differ by up to $differs" || row resume ok "losses differ by up to $differs"
}

# One line of figures from a line of JSON.
figures() { # FILE
    local peak rate
    rate=$(number "$1" gflop_per_s)
    peak=$(number "$1" matmul_peak_gflop_per_s)
    echo "$(number "$1" step_s_median) s/step, $(number "$1" images_per_s) images/s, peak $(number "$1" peak_gb) GB${rate:+, $rate of $peak GFLOP/s}"
}

bench_peer() { # NAME LIMIT FLAGS...
    local name=$1 limit=$2
    shift 2
    part "$name" "$limit" "$python" "$peers/bench_step.py" "$@" && row "$name" ok "$(figures "$out/$name.out")"
}

bench() {
    local batch batches='1 8' size=(--latent 64 --dtype bf16 --device "$device") peer_limit=60
    if [[ $device == cpu ]]; then
        batches=1 size=(--latent 8 --dtype f32 --device cpu --steps 2 --warmup 1)
        peer_limit=180 # most of it goes into making the weights
        row bench-512px 'left out' 'only on a card: latent 64 with batch 1 and 8, and the peers compiled'
    fi
    local have_peer=yes
    prepare_peers || have_peer=no
    for batch in $batches; do
        part "bench-batch-$batch" 60 "$binary" bench step "${size[@]}" --batch "$batch" && row "bench-batch-$batch" ok "$(figures "$out/bench-batch-$batch.out")"
        [[ $have_peer == no ]] || bench_peer "peer-batch-$batch" "$peer_limit" "${size[@]}" --batch "$batch"
    done
    # Last, because compiling takes long.
    [[ $have_peer == yes && $device != cpu ]] || return 0
    for batch in $batches; do
        bench_peer "peer-compiled-batch-$batch" 110 "${size[@]}" --batch "$batch" --channels-last --compile
    done
}

prepare_peers() {
    [[ -f $peers/bench_step.py ]] || { row peers 'left out' 'no folder with bench_step.py given'; return 1; }
    if [[ -n $wheels ]]; then
        # Without dependencies: the folder holds them all but PyTorch, which must stay the one that is here.
        part peer-wheels 120 "$python" -m pip install -q --no-index --no-deps --find-links "$wheels" --target "$out/site" "$wheels"/*.whl || return 1
        export PYTHONPATH=$out/site${PYTHONPATH:+:$PYTHONPATH}
    fi
    has_module 'torch, diffusers, peft' || { row peers 'left out' "$python has no torch, diffusers or peft"; return 1; }
}

[[ -x $binary ]] || { echo "no program at $binary: give --binary" >&2; exit 2; }
say_machine
check_doctor
check_ops
check_step
check_quickstart
check_resume
bench
echo
awk -F '\t' '{ printf "%-26s %-12s %s\n", $1, $2, $3 }' "$table"
echo "on $device, $((SECONDS - started)) s; logs in $out" >&2
exit "$failed"
