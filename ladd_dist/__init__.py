"""Latent Adversarial Diffusion Distillation, sharded: from an SD3-class teacher to a 1-4 step student."""
