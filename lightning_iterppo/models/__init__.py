"""Backbones, adapters, heads and prompt rendering: all that touches a language model."""
