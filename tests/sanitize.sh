#!/usr/bin/env bash
# Runs the tests of the sockets under AddressSanitizer and ThreadSanitizer. It needs a nightly
# toolchain, and is no part of `run.sh`.
#
# The standard library is not instrumented: that would need its source. AddressSanitizer does not mind.
# ThreadSanitizer does not see what `Mutex`, channels and joined threads synchronize where they wait, and
# reports races that are none. With a whole pool these are hundreds, everywhere, so that nothing can be
# learnt; with the unit tests they are in the standard library's own code, and what is elsewhere counts.
set -euo pipefail
cd "$(dirname "$0")/.."

target=x86_64-unknown-linux-gnu
if ! cargo +nightly --version >/dev/null 2>&1; then
    echo "there is no nightly toolchain, and nothing was tested; run: rustup toolchain install nightly" >&2
    exit 2
fi

log=$(mktemp)
suppressions=$(mktemp)
trap 'rm -f "$log" "$suppressions"' EXIT
# MariaDB's client library does not free its copies of the options for TLS.
echo 'leak:mysql_optionsv' >"$suppressions"
export LSAN_OPTIONS="suppressions=$suppressions" TSAN_OPTIONS="exitcode=0"

run() {
    local sanitizer=$1
    shift
    echo
    echo "== $sanitizer: cargo +nightly test $*"
    RUSTFLAGS="-Zsanitizer=$sanitizer -Cunsafe-allow-abi-mismatch=sanitizer" \
        CARGO_TARGET_DIR="target/sanitize/$sanitizer" \
        cargo +nightly test --locked --all-features --target "$target" "$@" 2>&1 | tee "$log" \
        | grep -E '^(test |error|SUMMARY)' | sed 's/(BuildId.*//' | sort | uniq -c
    if [[ $sanitizer == thread ]] && grep '^SUMMARY' "$log" | grep -v ' /rustc/'; then
        echo "a race outside of the standard library:"
        cat "$log"
        return 1
    fi
}

run address -p diesel-peers --lib socket
run address -p diesel-peers-tests --test sockets
run thread -p diesel-peers --lib socket
