"""Strategies: which of the remembered frames a question is answered from, and how."""
