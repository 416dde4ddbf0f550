"""The networks: transformer with feature taps, discriminator heads, text encoders, VAE."""
