"""The page: a live video to talk to in the browser, on top of `serving`."""
