#!/usr/bin/env bash
# Check a machine with one GPU in at most 9 minutes, and print what was measured as one table:
#
#   scripts/gpu_check.sh               tests that need a GPU, throughput beside timm, cifar10_speed, peak memory
#   scripts/gpu_check.sh --dry-run     the same steps in tiny sizes, on a CPU
#
# PYTHON is the interpreter (default: python), OUT a folder for the logs (default: a temporary one), CIFAR10 a folder
# with train/ and test/ of class folders; without it, noise of the same shape is made, which times the same and learns
# nothing. Written for torch 2.11 and torchvision 0.26; needs no network.
set -u
cd "$(dirname "$0")/.."
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}
PYTHON=${PYTHON:-python}
OUT=${OUT:-$(mktemp -d)}
LIMIT=520 # seconds for all steps
dry=${1:-}

# The wheels that the machine lacks, by the names that pip knows.
"$PYTHON" - <<'PY'
import importlib.util

NEEDED = {
    "torch": "torch", "torchvision": "torchvision", "hydra": "hydra-core", "omegaconf": "omegaconf", "numpy": "numpy",
    "PIL": "pillow", "albumentations": "albumentations", "cv2": "opencv-python-headless", "skimage": "scikit-image",
    "sklearn": "scikit-learn", "kornia": "kornia", "matplotlib": "matplotlib", "optuna": "optuna", "rich": "rich",
    "tensorboard": "tensorboard", "wandb": "wandb", "timm": "timm", "pytest": "pytest",
}
missing = [name for module, name in NEEDED.items() if importlib.util.find_spec(module) is None]
print("missing:", " ".join(missing) or "nothing")
if missing:
    print("  pip install --no-index --find-links WHEELS", " ".join(missing))
PY

failed=0
rows=()
# step NAME SECONDS COMMAND...: runs the command with its output in $OUT/NAME.log, within what is left of the time.
step() {
    local name=$1 seconds=$2 status began=$SECONDS left=$((LIMIT - SECONDS))
    shift 2
    ((left < seconds)) && seconds=$left
    if ((seconds < 10)); then status=124; else timeout "$seconds" "$@" >"$OUT/$name.log" 2>&1; status=$?; fi
    rows+=("$name|$([[ $status == 0 ]] && echo done || echo "failed ($status), see $OUT/$name.log")|$((SECONDS - began)) s")
    if [[ $status != 0 ]]; then failed=1; tail -n 5 "$OUT/$name.log" 2>/dev/null; fi
}
# values NAME PATTERN: the lines of a step's log that match become rows of the table.
values() {
    local what rest
    while IFS='|' read -r what rest; do rows+=("$what|$rest|"); done < <(sed -nE "s/$2/\1|\2/p" "$OUT/$1.log" 2>/dev/null)
}

if [[ $dry == --dry-run ]]; then
    tests=(--collect-only -q)
    photos=(--archs resnet18 resnet50 --images 16 --image-size 32 --batch-size 8 --pairs 1 --workers 0)
    speed=(--seeds 1 trainer.epochs=1 trainer.device=cpu data.batch_size=50 scheduler.warmup_epochs=0)
    noise=(100 20)
else
    tests=(-q)
    photos=(--archs resnet18 resnet50 --images 12800 --image-size 224 --batch-size 256 --pairs 2)
    speed=(--seeds 3)
    noise=(50000 10000)
fi
if [[ -z ${CIFAR10:-} ]]; then
    CIFAR10=$OUT/noise
    step make_images 90 "$PYTHON" scripts/bench/make_noise.py "$CIFAR10" "${noise[@]}"
fi

# Without the project's own options, which ask for plugins of pytest that a bare machine lacks.
mapfile -t files < <(grep -rl 'mark\.gpu' tests --include='test_*.py')
step gpu_tests 170 "$PYTHON" -m pytest -o addopts= -p no:cacheprovider --import-mode=importlib -m gpu "${tests[@]}" \
    "${files[@]}"
values gpu_tests '^=* ?(.*(passed|collected|selected|skipped).*) in .*$'
step throughput 230 "$PYTHON" scripts/bench/throughput.py "${photos[@]}"
values throughput '^(resnet[0-9]+ [a-z]+) +median +(.*)$'
values throughput '^(resnet[0-9]+ peak memory) +(.*)$'
step cifar10_speed 120 "$PYTHON" scripts/bench/cifar10_speed.py --root "$CIFAR10" "${speed[@]}"
values cifar10_speed '^(test accuracy|seconds) +(.*)$'

"$PYTHON" -c 'import torch, torchvision; print("torch", torch.__version__, "torchvision", torchvision.__version__,
    torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU")'
printf '| %-28s | %-60s | %-6s |\n' what result time '---' '---' '---'
for row in "${rows[@]}"; do
    IFS='|' read -r what result time <<<"$row"
    printf '| %-28s | %-60s | %-6s |\n' "$what" "$result" "$time"
done
exit $failed
