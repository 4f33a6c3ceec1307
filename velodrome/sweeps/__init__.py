"""Searching for the best settings: many runs, on one machine or several, that share one study (Optuna)."""
