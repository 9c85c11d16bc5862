"""Pictures become words: tags and texts are composed into caption variants."""
