"""Backbones of one's own: pre-training goes on with unlabelled notes, and small encoders are made from larger ones."""
