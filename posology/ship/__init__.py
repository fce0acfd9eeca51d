"""Trained models on their way to where they are used."""
