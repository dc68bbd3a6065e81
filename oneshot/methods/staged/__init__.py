"""Methods whose search goes through stages, in each of which fewer operations compete."""
