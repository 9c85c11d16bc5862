"""Words and pictures become a model: caching, data order, the packed DiT and its training loop."""
