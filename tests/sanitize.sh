#!/usr/bin/env bash
# Runs the tests of the sockets under AddressSanitizer and ThreadSanitizer. This needs a nightly toolchain,
# so `run.sh` leaves it out.
#
# The standard library is not instrumented, because that would need its source. This does not affect
# AddressSanitizer. ThreadSanitizer does not see how `Mutex`, channels and joined threads synchronize while
# they wait, and reports races that do not exist. With a whole pool there are hundreds of such reports
# everywhere. With the unit tests they are all in the standard library, and only other reports count.
set -euo pipefail
cd "$(dirname "$0")/.."

packages=(
    gcc libc6-dev pkg-config util-linux             # to build, and to start servers as their users
    mariadb-server galera-4 libmariadb-dev          # MariaDB, and diesel's client library for it
    postgresql libpq-dev                            # PostgreSQL, and diesel's client library for it
    haproxy                                         # to pause proxies
)
target=x86_64-unknown-linux-gnu
if ! cargo +nightly --version >/dev/null 2>&1; then
    echo "nothing was tested: there is no nightly toolchain; run: rustup toolchain install nightly" >&2
    exit 2
fi
tests/install.sh "${packages[@]}"

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
        echo "ThreadSanitizer reports a race outside of the standard library:"
        cat "$log"
        return 1
    fi
}

run address -p diesel-peers --lib socket
run address -p diesel-peers-tests --test sockets
run thread -p diesel-peers --lib socket
