"""This project's own Lumina-Image-2.0 transformer over packed rows, with the weights of diffusers and ComfyUI."""
