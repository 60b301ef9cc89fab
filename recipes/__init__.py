"""Recipes: YAML composed from groups, one folder a group; `iterppo recipes` lists them, `iterppo show` prints one."""
