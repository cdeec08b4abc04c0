#!/usr/bin/env bash
# The text of `smollm2-6-2.toml`: documents that SmolLM2-135M-Instruct writes itself, so that the student
# learns on what its teacher knows. One million tokens to train on, and others, of other seeds, to watch
# and to judge by. `burn-lti` is the command, wherever it is; about an hour on two cores.
#
#     recipes/smollm2-text.sh TEACHER_FOLDER [TRAINING_TOKENS]
set -euo pipefail
teacher="${1:?the folder of SmolLM2-135M-Instruct: \`cargo xtask setup teachers\` says where it is}"
tokens="${2:-1000000}"
text="$(dirname "${BASH_SOURCE[0]}")/smollm2"
mkdir -p "$text"
ln -sfn "$(realpath "$teacher")" "$text/teacher"
# What is there already stays.
write() {
    [ -e "$text/$1.jsonl" ] ||
        burn-lti sample-corpus --model "$teacher" --out "$text/$1.jsonl" --seed "$2" --tokens "$3"
}
write valid 1 24000
write judge 2 24000
write train 0 "$tokens"
