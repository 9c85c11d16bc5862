"""Where pictures come from: each source lists its corpus without opening a picture."""
