#!/usr/bin/env bash
# Builds for NVIDIA cards on a machine without a CUDA toolkit: installs the compiler and its headers from PyPI into a
# folder, with empty stand-ins for the libraries that only the machine with the card has, and writes the environment to
# build with. Needs Linux on x86-64, Python with pip and a C++ compiler. Takes about 270 MB. Run it again at will.
#
#     tools/cuda/setup.sh [FOLDER]          (~/.cache/loralei-cuda)
#     source FOLDER/env.sh
#     cargo build --profile dist -p loralei --features cuda
#
# CUDA_COMPUTE_CAP, 90 where it is not set, is the kind of card that the program will run on. 90 is the H100 and H200 and
# no other; a number below, such as 80, is that kind and all later ones.
set -euo pipefail

folder=${1:-${XDG_CACHE_HOME:-$HOME/.cache}/loralei-cuda}
compute_cap=${CUDA_COMPUTE_CAP:-90}
packages=(
    nvidia-cuda-nvcc==13.0.88
    nvidia-cuda-crt==13.0.88
    nvidia-nvvm==13.0.88
    nvidia-cuda-runtime==13.0.96
    nvidia-cuda-cccl==13.0.85
)
# What candle names to the linker. The program looks these up while it runs, so nothing need be in them.
stand_ins=(cuda.so.1 cudart.so.13 cublas.so.13 cublasLt.so.13 curand.so.10 nvrtc.so.13 cudnn.so.9)

if [[ $(uname -sm) != "Linux x86_64" ]]; then
    echo "error: this script is for Linux on x86-64: install NVIDIA's CUDA toolkit instead" >&2
    exit 1
fi
for program in python3 c++; do
    if ! command -v "$program" >/dev/null; then
        echo "error: there is no \`$program\` on this machine" >&2
        exit 1
    fi
done

mkdir -p "$folder"
folder=$(cd "$folder" && pwd)
toolkit=$folder/site/nvidia/cu13

if [[ $(cat "$folder/packages" 2>/dev/null || true) != "${packages[*]}" ]]; then
    echo "installing ${packages[*]} into $folder"
    rm -rf "$folder/site" "$folder/packages"
    python3 -m pip install --quiet --no-deps --only-binary=:all: --target "$folder/site" "${packages[@]}"
    echo "${packages[*]}" >"$folder/packages"
fi

mkdir -p "$toolkit/lib/stubs"
for stand_in in "${stand_ins[@]}"; do
    file=$toolkit/lib/stubs/lib${stand_in%%.so*}.so
    c++ -shared -nostdlib -x c++ /dev/null -Wl,-soname,"lib$stand_in" -o "$file"
done

{
    printf 'export CUDA_HOME=%q\n' "$toolkit"
    # shellcheck disable=SC2016 # the path as it is where the file is sourced
    printf 'export PATH=%q:"$PATH"\n' "$toolkit/bin"
    printf 'export CUDA_COMPUTE_CAP=%q\n' "$compute_cap"
    echo 'export CUDARC_CUDA_VERSION=13000'
} >"$folder/env.sh"

"$toolkit/bin/nvcc" --version | tail -n 2
cat "$folder/env.sh"
echo "# now: source $folder/env.sh && cargo build --profile dist -p loralei --features cuda"
