#!/usr/bin/env bash
# Teachers that parts of `cargo xtask figures` read, beside those of `cargo xtask setup teachers`: that of the
# demo, and two Llamas that were never trained, of other widths than stories260k. `burn-lti` is the command,
# wherever it is; a few minutes on two cores.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
models=target/figures/models
mkdir -p "$models"
[ -e "$models/demo" ] || burn-lti demo --out "$models/demo"
random() {
    [ -e "$models/$1" ] || cargo run --release --package burn-lti-benches --bin random_teacher -- \
        "$models/$1" --shape stories260k --hidden "$2" --std "$3" --tokenizer ../shared/teachers/stories260k
}
random narrow 32 0.3
random wide 192 0.1
