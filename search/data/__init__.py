"""Text to pretrain on and labelled tasks."""
