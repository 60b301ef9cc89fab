"""A customer and an engine for lightning-iterppo."""
