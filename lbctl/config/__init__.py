"""What the operator says: options, the file behind --config, and how it is followed."""
