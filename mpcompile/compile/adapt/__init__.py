"""Adapting a captured model to exits: frozen backbone, trained heads."""
