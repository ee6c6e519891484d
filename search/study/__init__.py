"""The study and its trials: asking, evaluating, telling, and recovering what was interrupted."""
