"""What a trained model answers, and how well."""
