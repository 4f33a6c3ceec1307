"""Networks, and what can be said about any network without training it."""
