"""`cache-latents`: pictures and captions are encoded once, into tensor shards."""
