"""The run folder: paths, checkpoints, and the sinks that write it."""
