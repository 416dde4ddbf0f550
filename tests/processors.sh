#!/usr/bin/env bash
# Every test file that holds a numerical bound, with the kernels that other processors would take, in one and two
# threads. Arguments go to pytest.
set -eu
cd "$(dirname "$0")/.."
settings=(
    "OPENBLAS_CORETYPE=Prescott ATEN_CPU_CAPABILITY=default MKL_CBWR=COMPATIBLE ONEDNN_MAX_CPU_ISA=SSE41"
    "OPENBLAS_CORETYPE=Haswell ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2"
)
if grep -q avx512dq /proc/cpuinfo; then
    settings+=("OPENBLAS_CORETYPE=SkylakeX ATEN_CPU_CAPABILITY=avx512")
else
    echo "this processor has no AVX-512: its kernels are left out"
fi
files=$(grep -lE "assert_close|allclose|approx\(|tolerance|TOLERANCE|< *[0-9.]+e-" tests/test_*.py)
failed=0
for setting in "${settings[@]}"; do
    for threads in 1 2; do
        echo "$setting, threads: $threads"
        # shellcheck disable=SC2086
        env $setting LADD_TEST_THREADS=$threads .venv/bin/pytest -m "slow or not slow" --numprocesses 2 \
            --dist loadfile $files tests/test_interpreter.py "$@" || failed=1
    done
done
exit $failed
