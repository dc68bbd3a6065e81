"""What a search says of itself when it ends."""
