"""The project's own Lumina-Image-2.0 transformer: packed rows inside, diffusers' weights outside."""
