"""Streams without a page: shared by many, fed from files and networks, spoken to over HTTP."""
