"""What every job stands on; knows nothing of transforms or density."""
