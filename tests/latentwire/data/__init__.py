"""Tests of latentwire/data."""
