"""Tests of latentwire/sources."""
