"""Tests of kat/grpo."""
