"""Tests of kat/training."""
