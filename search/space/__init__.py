"""Search spaces: which encoders there are."""
