"""Functions that several test files use, each defined once. Fixtures are in tests/conftest.py."""
