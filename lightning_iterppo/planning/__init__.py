"""What a recipe takes on so many devices, told before it is run: `iterppo doctor --plan`."""
