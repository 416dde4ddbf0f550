"""SD3 and SD3.5: folder layout, transformer with feature taps, attention, text, latent space, schedule, export."""
