"""Keeps what outlives a process: slow results, by what they depend on, and Optuna studies."""
