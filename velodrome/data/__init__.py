"""From bytes to batches: image sets, where they come from, and what is done to them on the way."""
