"""Tests of latentwire/stats."""
