"""Joint attention of image and text streams with QK RMSNorm: kernels, launch tables, PyTorch twin and operator."""
