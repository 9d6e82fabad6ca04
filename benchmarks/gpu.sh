#!/bin/bash
# On a machine with an NVIDIA GPU: ResNet-50 in ONNX Runtime, and in torch.compile where torch is there.
#
#   benchmarks/gpu.sh BUNDLE                          installs what it needs from PyPI into a folder of its own
#   WHEELS=wheels benchmarks/gpu.sh BUNDLE            without a network: from these wheels, of which one is this package's
#                                                     (python -m build --wheel); the machine has a driver only
#   PYTHON=/opt/torch/bin/python3 benchmarks/gpu.sh BUNDLE     the Python that has torch, which then takes part
#
# BUNDLE is a bundle of ResNet50(variant="v1.5") with the precisions float16 and int8-symmetric; where there is none yet,
# a machine with the extra `export` makes it: python benchmarks/gpu.py --make BUNDLE.
#
# Measured: CUDA with channels last, float32 with and without TF32, float16, int8; batches of 1, 32 and 128; with and
# without CUDA graphs; TensorRT where its libraries are; each in a process of its own, in turn, and checked against the
# bundle's golden sample. Then the server answers with CUDA graphs, and its answers are compared with the engine's.
#
# Variables: WHEELS (folder), PYTHON (default python3), SITE (where to install, default a temporary folder), ROUNDS (3),
# SECONDS_EACH (1), BATCHES (1,32,128), PROVIDERS (cuda, and tensorrt where it is active; `cpu` tries the script itself on
# a machine without a GPU), OUT (default benchmarks/results).
# The result is a JSON file and an HTML report in OUT whose names say the conditions.
set -euo pipefail
cd "$(dirname "$0")/.."

fail() {
    echo "gpu.sh: $*" >&2
    exit 1
}

[ $# -eq 1 ] || fail "name the bundle; see the head of this file"
[ -e "$1/bundle.json" ] || fail "$1 is not a bundle"
bundle=$(cd "$1" && pwd)
python=${PYTHON:-python3}
providers=${PROVIDERS:-auto}
if [ "$providers" != cpu ]; then
    command -v nvidia-smi > /dev/null || fail "there is no nvidia-smi: an NVIDIA GPU and its driver are needed (PROVIDERS=cpu tries the script without)"
    nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader || fail "nvidia-smi fails: is the driver loaded?"
fi

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
site=${SITE:-$work/site}
if [ ! -e "$site/.installed" ]; then
    runtime=$([ "$providers" = cpu ] && echo serve || echo serve-gpu)
    if [ -n "${WHEELS:-}" ]; then
        # Just these, and what this Python has already: NVIDIA's libraries often come with torch.
        "$python" -m pip install --quiet --no-index --no-deps --no-compile --target "$site" "$WHEELS"/*.whl
    else
        "$python" -m pip install --quiet --target "$site" ".[$runtime,bench]"
    fi
    touch "$site/.installed"
fi
export PYTHONPATH=$site${PYTHONPATH:+:$PYTHONPATH} PYTHONSAFEPATH=1  # what is installed, not this checkout's folders
# NVIDIA's libraries in pip's packages of this Python lie on no path of the system.
libraries=$("$python" - << 'END'
import importlib.util
from pathlib import Path

found = importlib.util.find_spec("nvidia")
folders = [Path(place) for place in found.submodule_search_locations] if found else []
print(":".join(sorted({str(file.parent) for folder in folders for file in folder.glob("*/lib/lib*.so*")})))
END
)
export LD_LIBRARY_PATH=$libraries${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
"$python" benchmarks/gpu.py "$bundle" --providers "$providers" --rounds "${ROUNDS:-3}" --seconds "${SECONDS_EACH:-1}" \
    --batches "${BATCHES:-1,32,128}" --out "${OUT:-benchmarks/results}"
