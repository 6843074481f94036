"""The command for a user's own pictures."""
