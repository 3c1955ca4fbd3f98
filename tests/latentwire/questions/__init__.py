"""Tests of latentwire/questions."""
