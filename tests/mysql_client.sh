#!/usr/bin/env bash
# Runs the tests that depend on the client library with MySQL's `libmysqlclient`, which is compiled for this.
# `run.sh` links MariaDB's library, as most applications do. MySQL's has other error messages, timeouts and
# certificate checks. Building it takes some minutes, so `run.sh` leaves it out; CI has a job for it.
set -euo pipefail
cd "$(dirname "$0")/.."

packages=(
    gcc g++ cmake libc6-dev pkg-config util-linux   # to build, and to start servers as their users
    libssl-dev libncurses-dev                       # required by MySQL's build
    mariadb-server galera-4                         # the servers are still MariaDB's
    postgresql libpq-dev                            # for tests that use both
    haproxy nftables openssl                        # to pause proxies, drop packets, make certificates
    iproute2                                        # to list connections
)
tests/install.sh "${packages[@]}"

tests=(suite exactly_once fault_recovery frozen_peer galera secrets sockets)
# A separate folder, so that switching between the client libraries does not rebuild everything.
export CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-target}/mysql-client"
# `Cargo.lock` does not pin the library itself, because no feature of this workspace requires it.
cargo test --locked -p diesel-peers -p diesel-peers-tests --features mysql,postgres,mysqlclient-sys/bundled \
    --lib "${tests[@]/#/--test=}" "$@"
