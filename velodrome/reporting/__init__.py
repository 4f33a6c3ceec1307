"""From a run folder to a page that a person reads. Never imports torch."""
