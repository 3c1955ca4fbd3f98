"""Tests of latentwire/encoders."""
