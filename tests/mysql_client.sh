#!/usr/bin/env bash
# Runs the tests in which the client library matters with MySQL's own (`libmysqlclient`), which is built
# in. `run.sh` links MariaDB's, as most do; what MySQL's says, waits for and verifies is its own. Building
# it takes some minutes, and CI has a job for it: it is no part of `run.sh`.
set -euo pipefail
cd "$(dirname "$0")/.."

packages=(
    gcc g++ cmake libc6-dev pkg-config util-linux   # to build, and to start servers as their users
    libssl-dev libncurses-dev                       # what MySQL's build insists on
    mariadb-server galera-4                         # the servers are MariaDB's all the same
    postgresql libpq-dev                            # for the tests that have both
    haproxy nftables openssl                        # a proxy to pause, packets to drop, certificates
)
tests/install.sh "${packages[@]}"

tests=(suite faults freeze galera secrets sockets)
# A folder of its own: the other library is not built anew each time.
export CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-target}/mysql-client"
# `Cargo.lock` does not pin the library itself, which no feature of ours brings in.
cargo test --locked -p diesel-peers -p diesel-peers-tests --features mysql,postgres,mysqlclient-sys/bundled \
    --lib "${tests[@]/#/--test=}" "$@"
