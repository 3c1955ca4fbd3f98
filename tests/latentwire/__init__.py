"""Tests of latentwire."""
