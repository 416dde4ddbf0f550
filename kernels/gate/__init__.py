"""Ahead-of-time gate: every shipped kernel configuration compiles and meets its requirements. Needs no GPU.

``python -m kernels.gate`` prints a Markdown table and ends with code 1 where a configuration fails. Nothing here
imports torch, so that another version of triton can be put in front by PYTHONPATH.
"""
