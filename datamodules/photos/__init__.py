"""Photos of any size, decoded whenever they are drawn."""
