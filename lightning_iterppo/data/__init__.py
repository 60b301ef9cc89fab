"""Logs in and out, token trees, samples, and the DataModules made of them."""
