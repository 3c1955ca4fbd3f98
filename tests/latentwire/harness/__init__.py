"""Tests of latentwire/harness."""
