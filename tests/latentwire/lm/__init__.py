"""Tests of latentwire/lm."""
