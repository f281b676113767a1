#!/usr/bin/env bash
# Installs those of the named packages that are missing (Debian or Ubuntu).
set -euo pipefail

missing=()
for package in "$@"; do
    dpkg-query --show --showformat='${db:Status-Status}' "$package" 2>/dev/null \
        | grep -qx installed || missing+=("$package")
done
if ((${#missing[@]})); then
    echo "installing: ${missing[*]}"
    as_root=(env DEBIAN_FRONTEND=noninteractive)
    if ((EUID != 0)); then as_root=(sudo "${as_root[@]}"); fi
    # The packages' own servers are not wanted: each test starts its own.
    as_root+=(RUNLEVEL=1)
    "${as_root[@]}" apt-get update -qq
    "${as_root[@]}" apt-get install -y -qq --no-install-recommends "${missing[@]}"
fi
