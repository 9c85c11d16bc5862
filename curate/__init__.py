"""The corpus becomes a dataset: sources, measurements, duplicates, filters."""
