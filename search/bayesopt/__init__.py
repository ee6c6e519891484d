"""Bayesian optimisation, the mathematics: encodings, surrogates, acquisition functions."""
