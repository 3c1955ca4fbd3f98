"""Tests of latentwire/sweeps."""
