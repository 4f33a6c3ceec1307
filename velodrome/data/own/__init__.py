"""A user's own images: listed, looked through, prepared once, and made into image sets."""
