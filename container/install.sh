#!/usr/bin/env bash
# The one way to install, for `make install` and for the image: a virtual environment with the tested versions.
#   container/install.sh FOLDER WHAT...      WHAT is for pip: `.` or `--editable .[dev]`; PYTHON=python3 makes it
set -eu
if [ $# -lt 2 ]; then echo "usage: $0 FOLDER WHAT..." >&2; exit 2; fi
"${PYTHON:-python3}" -m venv "$1"
"$1/bin/pip" install --progress-bar on --constraint constraints.txt "${@:2}"
