"""Correctness of the kernels on the GPU at hand: ``make gpu-check``, see docs/gpu.md.

Run as ``pytest --confcutdir=tests/gpu tests/gpu``, since tests/conftest.py hides every GPU. Elsewhere nothing is
collected.
"""

import os

import torch

collect_ignore_glob = [] if torch.cuda.is_available() and os.environ.get("CUDA_VISIBLE_DEVICES") != "" else ["*.py"]
