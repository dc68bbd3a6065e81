"""Which subnets are measured, and which one of them is chosen."""
