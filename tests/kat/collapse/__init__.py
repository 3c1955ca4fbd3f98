"""Tests of the experiment on mode collapse."""
