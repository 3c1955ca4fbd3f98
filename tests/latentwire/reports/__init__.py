"""Tests of latentwire/reports."""
