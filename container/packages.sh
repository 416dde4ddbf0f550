#!/usr/bin/env bash
# What the system must have, on Debian and Ubuntu: to install, or only to run what was installed.
#   container/packages.sh build | run
set -eu
packages=(python3 ca-certificates)
case ${1:-} in
    build) packages+=(python3-venv) ;;
    # Triton compiles its launchers in C when a kernel first runs; NCCL loads the drivers of InfiniBand and RoCE.
    run) packages+=(gcc libc6-dev python3-dev ibverbs-providers) ;;
    *) echo "usage: $0 build | run" >&2; exit 2 ;;
esac
apt-get update
DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends "${packages[@]}"
rm -rf /var/lib/apt/lists/*
