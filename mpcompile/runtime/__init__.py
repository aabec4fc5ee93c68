"""The deployed half: from texts to answers through a chain of engines. Imports neither torch nor transformers."""
