"""Recipes and options of groups, found by an entry point."""
