"""The stages of `optimize`."""
