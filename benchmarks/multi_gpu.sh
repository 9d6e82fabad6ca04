#!/bin/bash
# On a machine with several GPUs: is training exact whatever the number of GPUs, and how does ResNet-50 scale?
#
#   benchmarks/multi_gpu.sh                                    everything, on all GPUs: about half an hour with eight
#   GPUS=4 DATA=folder:/data/imagenet benchmarks/multi_gpu.sh  on four, reading your own pictures
#   ONLY=exactness benchmarks/multi_gpu.sh                     or ONLY=scaling
#
# 1. Exactness: tests/training/exactness.py trains ResNet-20 for 20 steps on the same batches, on one GPU and on 2, 4, …
#    of them, mirrored and as workers; shown is the largest difference of losses and weights (max|a-b| / max|a|).
# 2. Scaling: keras-resnets train with ResNet-50 in bfloat16, the same images a GPU, on 1, 2, 4, … GPUs; images/s of the
#    third epoch (the first compiles), efficiency against as many times one GPU, and how busy the GPUs were. GPUs that
#    wait mean that the CPUs do not decode fast enough: then the figure is the input's, not the GPUs'.
#
# Variables: GPUS (default all), DATA (default: 512 made pictures, repeated), BATCH a GPU (256), STEPS an epoch (60),
# PRECISION (bfloat16), OUT (default benchmarks/results), PYTHON (default .venv/bin/python, which make sets up).
# The result is a JSON file in OUT whose name says the conditions; it is written anew after each part.
set -euo pipefail
cd "$(dirname "$0")/.."

fail() {
    echo "multi_gpu.sh: $*" >&2
    exit 1
}

command -v nvidia-smi > /dev/null || fail "there is no nvidia-smi: this benchmark needs a machine with NVIDIA GPUs and their driver"
names=$(nvidia-smi --query-gpu=name --format=csv,noheader) || fail "nvidia-smi fails: is the driver loaded?"
found=$(grep -c . <<< "$names") || true
gpus=${GPUS:-$found}
[[ $gpus =~ ^[0-9]+$ ]] || fail "GPUS is a number, not '$gpus'"
[ "$gpus" -le "$found" ] || fail "GPUS is $gpus, and nvidia-smi lists $found"
[ "$gpus" -ge 2 ] || fail "at least 2 GPUs are needed; GPUS is $gpus, and nvidia-smi lists $found"
gpu=$(head -1 <<< "$names")

python=${PYTHON:-.venv/bin/python}
if [ ! -x "$python" ]; then
    make .venv/.installed
fi
# The CPU's TensorFlow is the same wheel: only NVIDIA's libraries are missing.
sees() { TF_CPP_MIN_LOG_LEVEL=3 "$python" -c 'import tensorflow as tf; print(len(tf.config.list_physical_devices("GPU")))'; }
if [ "$(sees | tail -1)" -lt "$gpus" ]; then
    echo "installing NVIDIA's libraries beside TensorFlow"
    "$python" -m pip install --quiet --constraint constraints.txt "tensorflow[and-cuda]"
    [ "$(sees | tail -1)" -ge "$gpus" ] || fail "TensorFlow sees $(sees | tail -1) of $gpus GPUs: see keras-resnets doctor"
fi

batch=${BATCH:-256} steps=${STEPS:-60} precision=${PRECISION:-bfloat16} out=${OUT:-benchmarks/results}
work=$(mktemp -d)
trap 'kill $(jobs -p) 2> /dev/null; rm -rf "$work"' EXIT
export TF_CPP_MIN_LOG_LEVEL=3

# 1, 2, 4, … and all.
counts() {
    local n=1
    while [ "$n" -lt "$gpus" ]; do
        echo "$n"
        n=$((n * 2))
    done
    echo "$gpus"
}

# The first n GPUs, as CUDA_VISIBLE_DEVICES names them.
first() { seq -s, 0 $(($1 - 1)); }

exactness() {
    local n strategy type
    for type in float64 float32; do
        CUDA_VISIBLE_DEVICES=0 "$python" tests/training/exactness.py single 1 $type "$work/single-1-$type"
        for n in $(counts); do
            [ "$n" -gt 1 ] || continue
            echo "exactness: $n GPUs, $type"
            CUDA_VISIBLE_DEVICES=$(first "$n") \
                "$python" tests/training/exactness.py mirrored "$n" $type "$work/mirrored-$n-$type"
            CUDA_VISIBLE_DEVICES=$(first "$n") "$python" -c '
import sys
from keras_resnets.training.launch import launch
sys.exit(launch(sys.argv[1:], int(sys.argv[4]), gpus_per_worker=1))
' "$python" tests/training/exactness.py multi-worker "$n" $type "$work/workers-$n-$type"
        done
    done
}

pictures() {
    "$python" - "$work/pictures" "$((gpus * batch * steps))" << 'EOF'
import os, sys
from pathlib import Path

sys.path.insert(0, "benchmarks")
from input_pipeline import make_pictures

folder, number = Path(sys.argv[1]), int(sys.argv[2])
make_pictures(folder / "train")
(folder / "val").mkdir()
made = sorted((folder / "train").rglob("*.jpg"))
for i in range(len(made), number):  # the same bytes under many names
    os.link(made[i % len(made)], made[i % len(made)].with_name(f"{i}.jpg"))
for picture in made[:64]:  # a few to evaluate at the end, of each class
    (folder / "val" / picture.parent.name).mkdir(exist_ok=True)
    os.link(picture, folder / "val" / picture.parent.name / picture.name)
EOF
}

scaling() {
    local data=${DATA:-} n sampler
    if [ -z "$data" ]; then
        echo "making pictures"
        pictures
        data=folder:$work/pictures
    fi
    for n in $(counts); do
        echo "scaling: $n GPUs, $batch images each"
        nvidia-smi --query-gpu=index,utilization.gpu --format=csv,noheader,nounits --loop=1 > "$work/busy-$n" &
        sampler=$!
        CUDA_VISIBLE_DEVICES=$(first "$n") "$python" -m keras_resnets.cli train --recipe resnet50_v15 --data "$data" \
            --epochs 3 --warmup-epochs 0 --batch-size $((n * batch)) --precision "$precision" --no-sync-batch-norm \
            --no-deterministic --strategy mirrored --quiet --out "$work/scaling-$n"
        kill "$sampler"
        report
    done
}

report() {
    "$python" - "$work" "$out" "$gpu" "$gpus" "$batch" "$precision" "${DATA:-made}" << 'EOF'
import csv, json, platform, re, statistics, sys
from importlib.metadata import version
from pathlib import Path

import numpy as np

work, out = Path(sys.argv[1]), Path(sys.argv[2])
gpu, gpus, batch, precision, data = sys.argv[3:]
packages = {name: version(name) for name in ("tensorflow", "keras")}
result = {
    "machine": f"{gpus} × {gpu}", "python": platform.python_version(), **packages,
    "exactness": {}, "scaling": {}, "images_per_gpu": int(batch), "precision": precision,
    "data": "512 made JPEGs of 500×375, repeated" if data == "made" else data.partition(":")[0],
}

def difference(one, other, start):
    names = [name for name in one.files if name.startswith(start)]
    return max(float(np.abs(one[n] - other[n]).max() / (np.abs(one[n]).max() or 1)) for n in names)

for folder in sorted(work.glob("*-*-float*")):
    spread, number, dtype = folder.name.split("-")
    if spread == "single" or not (folder / "result.npz").exists():
        continue
    one, many = (np.load(work / name / "result.npz") for name in (f"single-1-{dtype}", folder.name))
    first = abs(float(many["losses"][0] / one["losses"][0]) - 1)
    result["exactness"][f"{spread} {number} {dtype}"] = {
        "first loss": first, **{name: difference(one, many, name) for name in ("gradient", "losses", "weight")}
    }
runs = sorted(int(folder.name.split("-")[1]) for folder in work.glob("scaling-*"))
for number in runs:
    rows = list(csv.DictReader((work / f"scaling-{number}" / "log.csv").open()))
    lines = [line.split(", ") for line in (work / f"busy-{number}").read_text().splitlines()]
    # The last third: the first epoch compiles.
    busy = [int(row[1]) for row in lines if len(row) == 2 and row[1].isdecimal() and int(row[0]) < number]
    result["scaling"][number] = {
        "images_per_second": float(rows[-1]["images_per_second"]),
        "gpu_busy_percent": statistics.mean(busy[-len(busy) // 3 :] or [0]),
    }
for number, row in result["scaling"].items():
    row["efficiency"] = row["images_per_second"] / (number * result["scaling"][runs[0]]["images_per_second"] / runs[0])
name = re.sub(r"[^a-z0-9]+", "", gpu.lower().replace("nvidia", ""))
file = out / f"multi_gpu_{gpus}x{name}_{precision}_tf{packages['tensorflow']}_keras{packages['keras']}.json"
out.mkdir(parents=True, exist_ok=True)
file.write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n")
for title in ("exactness", "scaling"):
    for key, row in result[title].items():
        print(title, key, "  ".join(f"{name} {value:.3g}" for name, value in row.items()))
print(f"wrote {file}")
EOF
}

case ${ONLY:-all} in
    exactness | all)
        exactness
        report
        ;;&
    scaling | all) scaling ;;
    exactness) ;;
    *) fail "ONLY is exactness or scaling, not '$ONLY'" ;;
esac
