"""Tests of latentwire/analysis."""
