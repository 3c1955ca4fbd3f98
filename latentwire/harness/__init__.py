"""What every job stands on; knows nothing of transforms or density."""

__version__ = "0.1.0"
