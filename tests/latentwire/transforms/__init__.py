"""Tests of latentwire/transforms."""
