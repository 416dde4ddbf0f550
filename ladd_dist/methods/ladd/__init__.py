"""Latent Adversarial Diffusion Distillation (Sauer et al. 2024, arXiv 2403.12015): step, heads and losses."""
