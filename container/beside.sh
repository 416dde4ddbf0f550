#!/usr/bin/env bash
# What lies beside the environment in a folder of its own, for `make test` and for the image; its version is the tested one.
#   container/beside.sh ENVIRONMENT FOLDER PACKAGE
set -eu
if [ $# -ne 3 ]; then echo "usage: $0 ENVIRONMENT FOLDER PACKAGE" >&2; exit 2; fi
"$1/bin/pip" install --progress-bar on --no-deps --target "$2" --constraint constraints.txt "$3"
