"""Performance estimation: what a candidate is worth, and with which first weights it starts."""
