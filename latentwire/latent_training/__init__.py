"""latent_training."""
