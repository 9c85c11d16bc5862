"""Copies of a picture: found by bytes, by pixels and by perceptual hash; the best one stays."""
