#!/usr/bin/env bash
# A container as a pod's would be, in namespaces that are entered already: its root is this machine's, read-only.
#   pod.sh FOLDER USER CODE VENV PYTHON SHM TMP WORKDIR [FROM:TO:ro|rw]... -- COMMAND...
# FOLDER has the pod's own files: hosts, env (one NAME=VALUE after the other, each ended by NUL), termination-log.
# SHM and TMP are sizes in bytes. CODE is found at /opt/ladd_dist, VENV at
# /opt/venv, and PYTHON, the folder of its interpreter, where it is.
set -euo pipefail
FOLDER=$1 USER_ID=$2 CODE=$3 VENV=$4 PYTHON=$5 SHM=$6 TMP=$7 WORKDIR=$8
shift 8
mounts=("$CODE:/opt/ladd_dist:ro" "$VENV:/opt/venv:ro")
while [ "$1" != -- ]; do mounts+=("$1"); shift; done
shift

mount --make-rprivate /
base=$FOLDER/root root=$FOLDER/root/root
mkdir -p "$base"
mount -t tmpfs tmpfs "$base"
mkdir "$base/upper" "$base/work" "$root"
mount -t overlay overlay -o lowerdir=/,upperdir="$base/upper",workdir="$base/work" "$root"
# FROM:TO:ro|rw
place() {
    local from to mode
    IFS=: read -r from to mode <<< "$1"
    mkdir -p "$root$to"
    mount --bind "$from" "$root$to"
    mount -o "remount,bind,$mode" "$root$to"
}
for each in "${mounts[@]}"; do place "$each"; done
while [ "$PYTHON" != / ]; do
    chmod a+rx "$root$PYTHON"  # it may be in root's home
    PYTHON=$(dirname "$PYTHON")
done
mount -t tmpfs -o size=65536,mode=755 tmpfs "$root/dev"
mkdir "$root/dev/shm"
for device in null zero full random urandom; do
    touch "$root/dev/$device"
    mount --bind "/dev/$device" "$root/dev/$device"
done
touch "$root/dev/termination-log"
mount --bind "$FOLDER/termination-log" "$root/dev/termination-log"
mount -o remount,ro "$root/dev"
mount -t tmpfs -o size="$SHM",mode=1777 tmpfs "$root/dev/shm"
mount -t tmpfs -o size="$TMP",mode=1777 tmpfs "$root/tmp"
mount --bind "$FOLDER/hosts" "$root/etc/hosts"
mount -t proc proc "$root/proc"
mount -o remount,ro "$root"

mapfile -d '' variables < "$FOLDER/env"
exec chroot "$root" /usr/bin/setpriv --reuid "$USER_ID" --regid 0 --clear-groups --no-new-privs --bounding-set -all \
    /usr/bin/env --ignore-environment --chdir "$WORKDIR" "${variables[@]}" "$@"
