"""SD3 and SD3.5: transformer with feature taps, attention, text conditioning, latent space, schedule."""
