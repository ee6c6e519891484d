"""What a run leaves: checkpoints, cards, reports, pictures."""
