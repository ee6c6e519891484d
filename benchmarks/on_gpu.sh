#!/bin/sh
# What needs an accelerator, in steps of at most ten minutes each:
#
#     benchmarks/on_gpu.sh STEP RESULTS
#
# STEP is operations (bf16 against float32, every operation), models (speed against transformers' models), training
# (tokens per second and utilisation of pretraining), trainer (against transformers' Trainer) or like_for_like (goes on
# from what RESULTS holds; call it until it prints "all runs are there"). The last two read CORPUS, CORPUS_CONFIG, GLUE
# and TOKENIZER, which are Hub ids or, on a machine without network (HF_HUB_OFFLINE=1), folders. SMOKE=1 makes all of it
# small enough for a processor. RESULTS has to outlive the calls, and the environment needs the package with its test
# extra. The exit status is that of the step; 124 means that its time was up.
set -eu
step=$1 results=$2
corpus=${CORPUS:-wikimedia/wikipedia} config=${CORPUS_CONFIG:-20231101.en} glue=${GLUE:-nyu-mll/glue}
tokenizer=${TOKENIZER:-google-bert/bert-base-uncased}
python=${PYTHON:-python}
limit=${LIMIT:-570}
export PYTHONPATH="${PYTHONPATH:-.}" TOKENIZERS_PARALLELISM=false PYTHONUNBUFFERED=1
mkdir -p "$results"

run() {
    { timeout "$limit" "$python" "$@" 2>&1 && echo 0 >"$results/.status" || echo $? >"$results/.status"; } |
        tee -a "$results/$step.log"
    return "$(cat "$results/.status")"
}

case $step in
operations)
    run -m pytest -q -m gpu -p no:cacheprovider tests/test_gpu.py
    ;;
models)
    if [ -n "${SMOKE:-}" ]; then
        run benchmarks/model_speed.py --shapes mini --lengths 16 --repetitions 1 --output "$results/model_speed.json"
    else
        run benchmarks/model_speed.py --shapes mini base --repetitions 20 --output "$results/model_speed.json"
    fi
    ;;
training)
    if [ -n "${SMOKE:-}" ]; then
        run benchmarks/training_throughput.py --architectures bert-tiny --batch-sizes 2 --steps 30 --profile \
            --output "$results/training_throughput.json"
    else
        run benchmarks/training_throughput.py --batch-sizes 256 1024 --compile --profile \
            --output "$results/training_throughput.json"
    fi
    ;;
trainer)
    set -- --corpus "$corpus" --corpus-config "$config" --tokenizer "$tokenizer" \
        --output "$results/pretraining_speed.json"
    if [ -n "${SMOKE:-}" ]; then
        run benchmarks/pretraining_speed.py "$@" --batch-sizes 2 --rounds 1 --steps 4
    else
        run benchmarks/pretraining_speed.py "$@" --batch-sizes 32 256 --rounds 3 --steps 60 --curve-steps 200
    fi
    ;;
like_for_like)
    if [ -n "${SMOKE:-}" ]; then
        set -- --steps 2 --models bert-mini --seeds 0
    else
        set -- --tokenizer "$tokenizer" --steps 4000 --batch-size 256 \
            --max-train-examples 5000 --max-validation-examples 10000 --finetuning-epochs 3
    fi
    run benchmarks/like_for_like.py --output "$results/like_for_like" --work "$results/work" --corpus "$corpus" \
        --corpus-config "$config" --glue "$glue" --searched model_cards/searched "$@"
    ;;
*)
    echo "unknown step $step, known: operations, models, training, trainer, like_for_like" >&2
    exit 2
    ;;
esac
