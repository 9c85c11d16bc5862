"""The embedded demo: a drawn corpus, a miniature model, and the three commands run over them."""
