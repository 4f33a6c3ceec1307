"""Runs beside each other: read from their folders, sorted into variants, compared honestly."""
