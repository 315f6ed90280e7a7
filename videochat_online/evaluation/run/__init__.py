"""A run: what it is to do, how questions are answered on the way, what it writes."""
