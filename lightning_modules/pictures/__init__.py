"""Pictures of a run: how they are made and saved."""
