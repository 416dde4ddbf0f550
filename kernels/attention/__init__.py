"""Joint attention of image and text streams with QK RMSNorm: kernels, configurations, PyTorch reference, operator."""
