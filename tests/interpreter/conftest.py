"""Tests of kernels through Triton's interpreter, in a process of their own.

``TRITON_INTERPRET=1`` must be set before triton is imported, so `tests/test_interpreter.py` runs each file here as
``TRITON_INTERPRET=1 pytest --confcutdir=tests/interpreter FILE``; without the variable nothing is collected. Keep a
test to about 300 tiles (10 ms each).
"""

import os

os.environ["CUDA_VISIBLE_DEVICES"] = ""
os.environ["OMP_NUM_THREADS"] = os.environ.get("LADD_TEST_THREADS", "1")
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
collect_ignore_glob = [] if INTERPRETED else ["test_*.py"]

if INTERPRETED:
    import numpy as np
    import torch
    import triton.language as tl
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    _dot = InterpreterBuilder.create_dot

    def _widened(operand):
        """The interpreter keeps bf16 as its bits in uint16, and its dot would multiply those as integers."""
        if operand.dtype.scalar != tl.bfloat16:
            return operand
        return TensorHandle((operand.data.astype(np.uint32) << 16).view(np.float32), tl.float32)

    def _correct_dot(self, a, b, *rest):
        return _dot(self, _widened(a), _widened(b), *rest)

    InterpreterBuilder.create_dot = _correct_dot

    _cast, _cast_float = InterpreterBuilder.cast_impl, InterpreterBuilder.create_fp_to_fp

    def _rounded(operand):
        """The interpreter cuts off the digits that bf16 has no room for, where a GPU rounds to nearest."""
        bits = torch.from_numpy(np.ascontiguousarray(operand.data)).bfloat16().view(torch.uint16).numpy()
        return TensorHandle(bits, tl.bfloat16)

    def _narrows(operand, target):
        return operand.dtype.scalar == tl.float32 and target.scalar == tl.bfloat16

    def _correct_cast(self, operand, target):
        return _rounded(operand) if _narrows(operand, target) else _cast(self, operand, target)

    def _correct_cast_float(self, operand, target, rounding):
        return _rounded(operand) if _narrows(operand, target) else _cast_float(self, operand, target, rounding)

    InterpreterBuilder.cast_impl, InterpreterBuilder.create_fp_to_fp = _correct_cast, _correct_cast_float
