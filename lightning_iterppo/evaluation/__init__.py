"""How well a policy does: outcome rates with intervals."""
