"""Adapts a captured model to exits and pruning: heads alone, or the backbone with them."""
