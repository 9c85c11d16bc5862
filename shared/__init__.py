"""What the three packages agree on: settings, stages, tables, tensor shards, pictures, progress."""
