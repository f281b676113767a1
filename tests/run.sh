#!/usr/bin/env bash
# Installs what the tests need and is missing, then runs every check: format, lints, documentation,
# the tests of all features, and the quick start. CI runs exactly this.
set -euo pipefail
cd "$(dirname "$0")/.."

packages=(
    gcc libc6-dev pkg-config util-linux             # to build, and to start servers as their users
    mariadb-server galera-4 libmariadb-dev          # MariaDB, and diesel's client library for it
    postgresql libpq-dev                            # PostgreSQL, and diesel's client library for it
    haproxy nftables                                # a proxy to pause, and packets to drop
    openssl                                         # certificates for servers
    curl jq                                         # what operators' scripts use
)
# A browser, and what drives it. Ubuntu has no such packages; there it has to be installed already.
command -v chromedriver >/dev/null || packages+=(chromium chromium-driver)
tests/install.sh "${packages[@]}"

step() {
    echo
    echo "== $*"
    "$@"
}

export RUSTFLAGS="${RUSTFLAGS-} -Dwarnings" RUSTDOCFLAGS="${RUSTDOCFLAGS-} -Dwarnings"
step cargo fmt --all --check
step cargo clippy --locked --all-features --all-targets
step cargo clippy --locked --all-targets
step cargo clippy --locked --no-default-features --features cli
step cargo doc --locked --all-features --no-deps
step cargo test --locked --all-features
step cargo run --locked --all-features --example quickstart
