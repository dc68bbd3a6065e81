"""Search spaces and their architectures, as data; `python -m ofa.space` describes a space."""
