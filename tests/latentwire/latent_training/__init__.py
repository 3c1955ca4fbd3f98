"""Tests of latentwire/latent_training."""
