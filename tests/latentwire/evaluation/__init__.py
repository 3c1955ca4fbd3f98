"""Tests of latentwire/evaluation."""
