"""Where frames may come from, and what keeps a server from harm by them."""
