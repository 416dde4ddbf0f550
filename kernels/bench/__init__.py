"""Microbenchmarks of the kernels: ``python -m kernels.bench NAME``.

Every measurement is a JSON row; tables and plots are made from the rows and kept under ``docs/benchmarks/``. A row
that nobody measured is not written: without a GPU only the correctness part runs.
"""
