"""One module a step. A step that was released is never changed: stores in the world have taken it."""
