"""Conversations in word templates, each with another structure: a shop, a guessing game, haggling over a price."""
