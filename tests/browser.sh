#!/usr/bin/env bash
# The report's page is opened in a real browser. Where there is none and we may install one, do; where we may not,
# say so: the browser tests are then skipped, except under LADD_REQUIRE_BROWSER=1 (CI), where they fail.
set -eu
if command -v chromium >/dev/null && command -v chromedriver >/dev/null; then
    exit 0
fi
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    echo "installing chromium for the browser tests"
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium chromium-driver >/dev/null
else
    echo "no chromium and chromedriver: the browser tests will be skipped (Debian: apt-get install chromium chromium-driver)"
fi
