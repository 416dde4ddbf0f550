"""The two elementwise passes of adaLN around a block: modulated LayerNorm and gated residual (`op`).

The trainer does not use them: torch.compile fuses the same, and no benchmark on a GPU has shown these to be faster.
``python -m kernels.bench modulation`` is that benchmark; if they lose it they go.
"""
