"""Forecasts what a model could gain on a device that is not at hand. Trains and runs nothing."""
