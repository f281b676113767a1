#!/usr/bin/env bash
# Compares the public API of the library with tests/public_api.txt, so that a review sees each change of it.
# With `--write` it writes the file. It needs a nightly toolchain of this date, whose rustdoc writes the JSON
# that this version of cargo-public-api reads: `cargo install --locked cargo-public-api@0.52.0`.
set -euo pipefail
cd "$(dirname "$0")/.."

toolchain=${DIESEL_PEERS_NIGHTLY:-nightly-2026-05-20}
file=tests/public_api.txt
api() {
    # Without the blanket, auto trait and derived implementations.
    cargo "+$toolchain" public-api -p diesel-peers --all-features -sss
}

if [[ ${1-} == --write ]]; then
    api >"$file"
else
    api | diff --unified "$file" - || {
        echo "The public API has changed: run $0 --write, and describe the change in CHANGELOG.md." >&2
        exit 1
    }
fi
