"""How alike two encoders are: edit distances and embeddings of their computational graphs."""
