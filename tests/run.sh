#!/usr/bin/env bash
# Installs missing packages that the tests need, then runs the checks of CI's main job: format, lints,
# documentation, all tests, the quickstart, and the package as published.
set -euo pipefail
cd "$(dirname "$0")/.."

packages=(
    gcc libc6-dev pkg-config util-linux             # to build, and to start servers as their users
    mariadb-server galera-4 libmariadb-dev          # MariaDB, and diesel's client library for it
    postgresql libpq-dev                            # PostgreSQL, and diesel's client library for it
    pgbouncer pgpool2                               # poolers as peers
    haproxy nftables iproute2                       # to pause proxies, drop packets and list connections
    openssl                                         # certificates for servers
    curl jq                                         # for the scripts in the guide for operators
)
# A browser and its driver. Ubuntu has no such packages, so there both have to be installed already.
command -v chromedriver >/dev/null || packages+=(chromium chromium-driver)
tests/install.sh "${packages[@]}"

times=()
unpacked=
finish() {
    [[ -z $unpacked ]] || rm -rf "$unpacked"
    ((${#times[@]} == 0)) || printf '%s\n' '' '== Seconds of each step' "${times[@]}"
}
trap finish EXIT

step() {
    local start=$SECONDS
    echo
    echo "== $*"
    "$@"
    times+=("$(printf '%5d  %s' $((SECONDS - start)) "$*")")
}

# Prints the files that a Markdown file links to: images, inline links and definitions, outside of code.
files_linked_in() {
    awk '/^ *```/ { code = !code; next } !code' "$1" \
        | grep -oP '(?<=\]\()[^)\s]+|(?<=src=")[^"]+|^\[[^\]]+\]:\s*\K\S+' \
        | grep -vE '^([a-z]+:|#)' | sed 's/#.*//' | sort -u
}

# Checks the package of the library as it would be published, outside of the workspace.
package() {
    local target crate package document link
    target=$(cargo metadata --locked --no-deps --format-version 1 | jq -r .target_directory)
    cargo package --locked -p diesel-peers --allow-dirty --list
    cargo package --locked -p diesel-peers --allow-dirty --no-verify
    crate=$(cargo pkgid -p diesel-peers)
    crate=diesel-peers-${crate##*[@#]}
    unpacked=$(mktemp -d)
    tar -xzf "$target/package/$crate.crate" -C "$unpacked"
    package=$unpacked/$crate
    for document in "$package"/*.md "$package"/docs/*.md; do
        [[ -e $document ]] || continue
        while read -r link; do
            [[ -e $(dirname "$document")/$link ]] && continue
            echo "${document#"$package/"} links to $link, which is not in the package" >&2
            return 1
        done < <(files_linked_in "$document")
    done
    # The same target folder: dependencies with the same features are checked already.
    (
        cd "$package"
        export CARGO_TARGET_DIR=$target
        cargo check --offline --all-features --lib --examples
        cargo doc --offline --all-features --no-deps
    )
}

export RUSTFLAGS="${RUSTFLAGS-} -Dwarnings" RUSTDOCFLAGS="${RUSTDOCFLAGS-} -Dwarnings"
# Tests mostly wait for servers.
export RUST_TEST_THREADS="${RUST_TEST_THREADS-$((2 * $(nproc)))}"
step cargo fmt --all --check
step cargo clippy --locked --workspace --all-features --all-targets
step cargo clippy --locked -p diesel-peers --all-targets
step cargo clippy --locked -p diesel-peers --all-targets --no-default-features
step cargo clippy --locked -p diesel-peers --all-targets --no-default-features --features doctor
step cargo clippy --locked -p diesel-peers-cli
step cargo doc --locked --workspace --all-features --no-deps
step cargo test --locked --workspace --all-features
step cargo run --locked --example quickstart
step package
