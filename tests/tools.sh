#!/usr/bin/env bash
# Programs of the system that some tests need. Where one is missing and we may install it, do; where we may not, say so:
# those tests are then skipped, except under LADD_REQUIRE_SYSTEM=1 (set by CI), where they fail.
set -eu

# need PURPOSE PACKAGES COMMAND...
need() {
    local purpose=$1 packages=$2 command
    shift 2
    for command; do
        command -v "$command" >/dev/null || break
        command=
    done
    if [ -z "$command" ]; then
        return
    fi
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        echo "installing $packages for the $purpose tests"
        apt-get update -qq
        # shellcheck disable=SC2086
        DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $packages >/dev/null
    else
        echo "no $command: the $purpose tests will be skipped (Debian: apt-get install $packages)"
    fi
}

need browser "chromium chromium-driver" chromium chromedriver
need network iproute2 ip
need Slurm "slurmctld slurmd slurm-client munge iproute2" slurmctld slurmd sbatch munged ip
