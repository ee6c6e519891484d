"""What encoders run on, and how long they take and how much energy they use there."""
